#!/usr/bin/env bash
# The everyday commands from key to verdict, as a user would type them, in a temporary folder: `make demo`.
#
# Two folders stand for two machines: owner/ holds the secret marking key, stranger/ only what is public.
# With ZKMARK_DATA set to a folder with MNIST the networks learn MNIST, otherwise scikit-learn's digits.
set -euo pipefail

if [[ -d "${ZKMARK_DATA:-}/mnist" ]]; then
    data=mnist arch=lenet shape=1,28,28
else
    data=digits arch=cnn shape=1,8,8
fi

# The networks are small: a second thread gives their training little, and on busy cores costs much.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

work=$(mktemp -d)
servers=()
clean_up() {
    status=$?
    for server in "${servers[@]}"; do kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true; done
    rm -rf "$work"
    if ((status)); then echo "quickstart: failed" >&2; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

heading() { printf '\n=== %s  (%s s)\n' "$*" "$SECONDS"; }
# expect STATUS COMMAND...: show the command, run it, and stop unless it exits with STATUS.
expect() {
    local want=$1 got=0
    shift
    printf '\n$ %s\n' "$*"
    "$@" || got=$?
    if ((got != want)); then
        echo "quickstart: exit status $got, expected $want" >&2
        exit 1
    fi
    if ((want)); then echo "(exit status $got, as it should be)"; fi
}
# await_address LOG PROCESS: the address that a server printed; stop if it died instead.
await_address() {
    local address
    for _ in {1..150}; do
        address=$(grep -oE '127\.0\.0\.1:[0-9]+' "$1" | head -n 1) && echo "$address" && return
        kill -0 "$2" || break
        sleep 0.2
    done
    cat "$1" >&2
    exit 1
}
new_secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
# new_authority: ca.pem, and by it a certificate of this machine, server.pem with server.key.
new_authority() {
    python - <<'EOF'
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
itself = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
for file, subject, key, extension in (
    ("ca.pem", "quickstart", authority, x509.BasicConstraints(ca=True, path_length=0)),
    ("server.pem", "this machine", server, itself),
):
    issuer, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("quickstart", subject))
    new = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
    new = new.not_valid_before(datetime.now(UTC)).not_valid_after(datetime.now(UTC) + timedelta(days=2))
    certificate = new.add_extension(extension, critical=False).sign(authority, hashes.SHA256())
    Path(file).write_bytes(certificate.public_bytes(Encoding.PEM))
Path("server.key").write_bytes(server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
EOF
}

mkdir "$work/owner" "$work/stranger"
cd "$work"
umask 077
new_secret >owner/passphrase
secret=(--passphrase-file owner/passphrase)
# The servers below speak TLS with a certificate of an authority made here; the stranger has a token for the prover.
(cd owner && new_authority && cp ca.pem ../stranger/ca.pem)
new_secret >stranger/token
echo "ada:$(tr -d '\n' <stranger/token | sha256sum | cut -d ' ' -f 1)" >owner/tokens
tls=(--tls-cert owner/server.pem --tls-key owner/server.key)

heading "1. The owner makes a key: secret triggers, committed to before their labels are known"
expect 0 zkmark-prover keygen --plan --shape $shape --classes 10 --ell 512
expect 0 zkmark-prover keygen --shape $shape --classes 10 --ell 512 --mk owner/owner.mk --vk owner/owner.vk "${secret[@]}"

heading "2. The owner publishes the key on a board, which can never take it back, before there is a model"
printf '\n$ zkmark-prover board --folder board --name quickstart --listen 127.0.0.1:0 --tls-cert ... &\n'
zkmark-prover board --folder board --name quickstart --listen 127.0.0.1:0 "${tls[@]}" >board.log 2>&1 &
servers+=($!)
address=$(await_address board.log $!)
board=(--board "$address" --log-key "$(sed -n 's/.*log key //p' board.log)")
expect 0 zkmark-prover publish --vk owner/owner.vk "${board[@]}" --tls-ca owner/ca.pem

heading "3. The owner trains a network with the mark; somebody else trains one without"
expect 0 zkmark-ml mark --data $data --arch $arch --mk owner/owner.mk "${secret[@]}" --mode fromscratch --out owner/marked.onnx
expect 0 zkmark-ml train --data $data --arch $arch --out stranger/innocent.onnx
expect 0 zkmark-ml evaluate --model owner/marked.onnx --data $data --mk owner/owner.mk "${secret[@]}"

heading "4. A stranger has the public key and a suspect's model; the key is checked once"
cp owner/owner.vk stranger/owner.vk
cp owner/marked.onnx stranger/suspect.onnx
expect 0 zkmark-verifier key stranger/owner.vk --sheet stranger/sheet.png "${board[@]}" --seen stranger/checkpoint \
    --tls-ca stranger/ca.pem
python - "$data" stranger/images <<'EOF'
"""The stranger's own images of the task, 200 of them: to see that the integer network still is the suspect's model."""
import sys
from pathlib import Path

from PIL import Image

from ml.data import load

folder = Path(sys.argv[2])
folder.mkdir()
for index, pixels in enumerate(load(sys.argv[1]).test_x[:200]):
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(folder / f"{index:03}.png")
EOF

heading "5. Offline: the stranger sends a nonce, the owner a proof; anyone can check the file again"
nonce=$(new_secret)
context=(--claimant Ada --purpose quickstart --nonce "$nonce")
expect 0 zkmark-prover prove --mk owner/owner.mk "${secret[@]}" --vk owner/owner.vk --model owner/marked.onnx \
    "${context[@]}" --out owner/claim.proof
cp owner/claim.proof stranger/claim.proof
cd stranger
check=(zkmark-verifier verify --vk owner.vk --images images)
expect 0 "${check[@]}" --model suspect.onnx "${context[@]}" --proof claim.proof
cd ..

heading "6. Online: the owner approves one network and serves; the stranger asks over gRPC and gets a page for people"
expect 0 zkmark-prover approve --mk owner/owner.mk "${secret[@]}" --model owner/marked.onnx
printf '\n$ zkmark-prover serve --mk owner/owner.mk --vk owner/owner.vk --listen 127.0.0.1:0 --tls-cert ... &\n'
zkmark-prover serve --mk owner/owner.mk "${secret[@]}" --vk owner/owner.vk --listen 127.0.0.1:0 "${tls[@]}" \
    --claimant Ada --tokens owner/tokens >owner/server.log 2>&1 &
servers+=($!)
address=$(await_address owner/server.log $!)
echo "serving on $address"
cd stranger
online=(--prover "$address" --claimant Ada --tls-ca ca.pem --token-file token)
expect 0 "${check[@]}" --model suspect.onnx "${online[@]}" "${board[@]}" --seen checkpoint --save-claim second.proof \
    --html report.html
echo "report.html, the verdict for people: $(wc -c <report.html) bytes"
expect 0 "${check[@]}" --model suspect.onnx "${online[@]}" --interactive

heading "7. What must fail: a model without the mark, a proof with one bit changed"
expect 1 "${check[@]}" --model innocent.onnx "${online[@]}"
cd ..
expect 0 zkmark-prover requests list --mk owner/owner.mk
expect 0 zkmark-ml evaluate --model stranger/innocent.onnx --data $data --mk owner/owner.mk "${secret[@]}"
expect 1 zkmark-prover prove --mk owner/owner.mk "${secret[@]}" --vk owner/owner.vk --model stranger/innocent.onnx \
    "${context[@]}" --out owner/false.proof
cp stranger/claim.proof stranger/tampered.proof
python - stranger/tampered.proof <<'EOF'
"""Flip the lowest bit in the middle of the proof."""
import sys
from pathlib import Path

path = Path(sys.argv[1])
proof = bytearray(path.read_bytes())
proof[len(proof) // 2] ^= 1
path.write_bytes(proof)
EOF

heading "8. Many claims at once: the stranger's list, one table"
cat >stranger/cases.toml <<EOF
vk = "owner.vk"
model = "suspect.onnx"
images = "images"
nonce = "$nonce"
claimant = "Ada"
purpose = "quickstart"

[[case]]
name = "the-suspect"
proof = "claim.proof"

[[case]]
name = "an-innocent"
model = "innocent.onnx"
proof = "claim.proof"

[[case]]
name = "tampered"
proof = "tampered.proof"
EOF
cd stranger
expect 1 zkmark-verifier batch cases.toml --results results

heading "Done: the marked model was proven three times, the unmarked model and the tampered proof rejected"
