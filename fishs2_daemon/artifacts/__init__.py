"""The model's files, and the s2cpp engine's runtime: which there are, where they lie and come from, whether they are
whole, how they are fetched.

While a file `x` is on its way, `x.part` holds its bytes and `x.part.json` what they are a part of; `.x.lock` is held by
the process that writes. `x` itself appears whole, with `x.record.json` beside it, or not at all.
"""
