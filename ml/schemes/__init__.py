"""Watermarks of four papers behind one protocol: make a key, mark a model with it, check a model for it.

backdoor    Adi, Baum, Cisse, Pinkas and Keshet, USENIX Security 2018
certified   Bansal et al., Certified Watermarks for Neural Networks, 2021
frontier    Le Merrer, Perez and Tredan, Adversarial Frontier Stitching, 2020
"""
