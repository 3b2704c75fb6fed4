"""The pipeline that the end-to-end tests change and disturb: every order is tagged and ranked, some do more.

`checked` is the same with another graph: what was tagged is tagged once more, by a new node.
"""

import glue
import misbehaving
import ranking
import tagging

from servepipe import App, ServeInputNode, build, remote, switch

Tagger = remote(tagging.Tagger)
Ranker = remote(ranking.Ranker, max_ongoing_requests=100)
Misbehaving = remote(misbehaving.Misbehaving)
answer = remote(glue.answer)
nothing = remote(glue.nothing)


def shop(*, check: bool) -> App:
    with ServeInputNode() as order:
        tagger = Tagger.bind("tag")
        ranker = Ranker.bind()
        rare = Tagger.bind("rare")
        risky = Misbehaving.bind()
        checker = Tagger.bind("check")
        more = switch(
            order["kind"],
            {"rare": rare.tag.bind(order), "risky": risky.act.bind(order)},
            default=nothing.bind(),
        )
        # Not in a variable: its name would be that of the step, of another one in each graph.
        result = answer.bind(
            checker.tag.bind(tagger.tag.bind(order)) if check else tagger.tag.bind(order),
            ranker.rank.bind(order),
            more,
        )
    return build(result, name="shop")


app = shop(check=False)
checked = shop(check=True)
