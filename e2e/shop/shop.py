"""The pipeline that the end-to-end tests change and disturb: every order is tagged and ranked, some do more."""

import glue
import misbehaving
import ranking
import tagging

from servepipe import ServeInputNode, build, remote, switch

Tagger = remote(tagging.Tagger)
Ranker = remote(ranking.Ranker, max_ongoing_requests=100)
Misbehaving = remote(misbehaving.Misbehaving)
answer = remote(glue.answer)
nothing = remote(glue.nothing)

with ServeInputNode() as order:
    tagger = Tagger.bind("tag")
    ranker = Ranker.bind()
    rare = Tagger.bind("rare")
    risky = Misbehaving.bind()
    more = switch(
        order["kind"],
        {"rare": rare.tag.bind(order), "risky": risky.act.bind(order)},
        default=nothing.bind(),
    )
    result = answer.bind(tagger.tag.bind(order), ranker.rank.bind(order), more)

app = build(result, name="shop")
