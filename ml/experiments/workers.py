"""Where parts of experiments are measured side by side: processes of this machine, or a Ray cluster (docs.ray.io).

The machines of a cluster share the folder of results, where trained models lie, and have the data sets at ZKMARK_DATA;
a part takes one GPU where there are any.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from protocol.errors import ParameterError

P = TypeVar("P")
R = TypeVar("R")
RETRIES = 3  # workers that one part may lose


@contextmanager
def processes(work: Callable[[P], R], jobs: int) -> Iterator[Callable[[P], R]]:
    """`work`, done in one of `jobs` processes, among which torch's threads are shared out."""
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        yield lambda part: pool.submit(work, part).result()


@contextmanager
def cluster(work: Callable[[P], R], jobs: int, address: str | None = None) -> Iterator[Callable[[P], R]]:
    """`work`, done by the workers of the Ray cluster at `address` (HOST:PORT or "auto"), or of one with `jobs` workers
    on this machine.

    Raises ParameterError if Ray is not installed or there is no such cluster, ConnectionError if it fails later.
    """
    try:
        import ray
    except ImportError:
        raise ParameterError("--engine ray needs the package ray: pip install 'zkmark[ray]'") from None
    cores = max(jobs, torch.get_num_threads())
    own: dict[str, Any] = {} if address else {"num_cpus": cores, "include_dashboard": False}
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ParameterError(f"no Ray cluster: {error}") from None
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = min(1, int(resources.get("GPU", 0)))
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        smallest = min(node["Resources"].get("CPU", 1) for node in nodes if node["Alive"])
        threads = max(1, int(min(smallest, resources.get("CPU", 1) // jobs)))
        task: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_with_threads)

        def there(part: P) -> R:
            try:
                result: R = ray.get(task.remote(work, threads, part))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise ConnectionError(f"the Ray cluster failed: {type(error).__name__}") from None
            return result

        yield there
    finally:
        if started:
            ray.shutdown()


def _with_threads(work: Callable[[P], R], threads: int, part: P) -> R:
    torch.set_num_threads(threads)
    return work(part)
