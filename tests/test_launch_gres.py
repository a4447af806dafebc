"""GPUs as Slurm lists them and as people ask for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salad.engines.gres import choose, gpus_of, parse_gpus
from salad.errors import SaladError


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("", {}),
        ("gpu:2", {None: 2}),
        ("gpu", {None: 1}),
        ("gpu:a100", {"a100": 1}),
        ("gpu:3090:8", {"3090": 8}),
        ("gpu:2080ti:2(S:0-1)", {"2080ti": 2}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:4(S:0,2),shard:8", {"a100": 4}),
        ("gpu:v100:2(S:0),gpu:p100:2(S:1)", {"v100": 2, "p100": 2}),
        ("gpu:a100:2,gpu:a100:2", {"a100": 4}),
        ("gpu:4(IDX:0-1,3)", {None: 4}),
        ("gpu:nvidia_h100_80gb_hbm3:8(IDX:0-7)", {"nvidia_h100_80gb_hbm3": 8}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100_1g.5gb:3(S:0)", {"a100_3g.20gb": 2, "a100_1g.5gb": 3}),
        ("gpu:1g.10gb+me:1", {"1g.10gb+me": 1}),
        ("gpu:tesla:no_consume:2", {"tesla": 2}),
        ("gpu:0", {}),
        ("gres/gpu=8", {None: 8}),
        ("cpu=64,mem=515000M,node=1,billing=64,gres/gpu=8,gres/gpu:a100=8", {"a100": 8}),
        ("gres/gpu:v100=2,gres/gpu:3090=4,gres/gpu=8", {"v100": 2, "3090": 4, None: 2}),
        ("gres:gpu:a100:2", {"a100": 2}),
        ("mps:200,bandwidth:lustre:no_consume:4G,gpumem:80,gpu:h200:8", {"h200": 8}),
        ("craynetwork:4", {}),
    ],
)
def test_gres_and_tres_of_every_form(gres, gpus):
    assert gpus_of(gres) == gpus


@given(st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9_.+-]{0,12}", fullmatch=True), st.integers(1, 16), max_size=4))
def test_types_of_any_spelling_keep_their_number(gpus):
    gpus = {name: number for name, number in gpus.items() if name != "no_consume"}
    node = ",".join(f"gpu:{name}:{number}(S:0,{index})" for index, (name, number) in enumerate(gpus.items()))
    assert gpus_of(f"shard:4,{node}") == gpus
    assert gpus_of(",".join(f"gres/gpu:{name}={number}" for name, number in gpus.items())) == gpus


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        (None, (None, None)),
        (2, (None, 2)),
        ("2", (None, 2)),
        ("0", (None, 0)),
        ("H200:8", ("H200", 8)),
        ("A100-80GB", ("A100-80GB", 1)),
        ("3090:8", ("3090", 8)),
        ("2080ti:2", ("2080ti", 2)),
        ("2080ti", ("2080ti", 1)),
        ("1g.5gb:7", ("1g.5gb", 7)),
        ("a100_3g.20gb", ("a100_3g.20gb", 1)),
        ("gpu:a100:4", ("a100", 4)),
        ("gpu:4", (None, 4)),
        (" RTX-6000-Ada:2 ", ("RTX-6000-Ada", 2)),
    ],
)
def test_gpus_are_asked_for_by_number_type_or_both(text, gpus):
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize(
    ("text", "hint"),
    [("3090", "3090:1"), ("8:3090", "3090:8"), ("", "TYPE:NUMBER"), ("a100:", "TYPE:NUMBER"), (":4", "TYPE:NUMBER"),
     ("a100:x", "TYPE:NUMBER"), ("a100:2:3", "TYPE:NUMBER"), ("-1", "TYPE:NUMBER"), ("1.5", "TYPE:NUMBER"),
     ("a100:0", "0 for no GPU"), ("a b", "TYPE:NUMBER"), ("a100:99999", "a100:8")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_to_write(text, hint):
    with pytest.raises(SaladError, match=hint) as caught:
        parse_gpus(text)
    assert "\n" not in str(caught.value)


def test_a_type_is_looked_for_on_the_nodes_and_spelled_as_the_cluster_does():
    nodes = [{"a100": 4, "v100": 2}, {"3090": 8}, {}]
    assert choose(nodes, None, 8) is None and choose(nodes, "A100", 4) == "a100" and choose(nodes, "3090", 8) == "3090"
    for kind, number, words in (
        ("a100", 5, "more than 4 of type a100"),
        ("h100", 1, "it has 3090, a100, v100"),
        (None, 9, "more than 8"),
    ):
        with pytest.raises(SaladError, match=words):
            choose(nodes, kind, number)
    with pytest.raises(SaladError, match="no type: write the number alone"):
        choose([{None: 4}], "a100", 1)
