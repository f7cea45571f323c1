"""Decodes of a masked model that is a table: what goes in, what comes out, what ran."""

from dataclasses import replace

from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model, rules_of
from dlm_edge.runtime.generate import Generation
from rules import decoding
from table_engines import TableEngines, hashed, make_manifest

V = 40
MASK, PAD = V - 1, V - 2
BLOCK_RULES = [rule.name for rule in rules_of("mdlm")]
SHAPES = [(8, 16), (8, 64), (64, 8)]


def request(**fields):
    base = {
        "prompt_ids": (0, 5, 6, 7, 8), "max_tokens": 30, "seed": 1, "sample_index": 0,
        "settings": decoding(temperature=1.0),
    }  # fmt: skip
    return Request(**{**base, **fields})


def never_ending(vocab_size=V, **options):
    table = hashed(vocab_size, **options)

    def denoiser(prefix, block):
        logits = table(prefix, block).copy()
        logits[:, 0] = -40
        return logits

    return denoiser


def decode(rule_request, shapes=SHAPES, denoiser=None, **fields):
    engines = TableEngines(denoiser or never_ending(), shapes, V)
    manifest = make_manifest(engines, **fields)
    generation = Generation(load_model(manifest, engines), rule_request)
    spans = list(generation)
    return generation.result, spans, engines


def infill(template, **fields):
    settings = decoding(temperature=1.0, block_size=8)
    asked = request(prompt_ids=(), max_tokens=0, template_ids=template, settings=settings)
    return decode(replace(asked, **fields), denoiser=hashed(V))
