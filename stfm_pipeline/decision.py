"""evaluation -> champion: the candidate is registered, and promoted or refused."""

from __future__ import annotations

import json
import logging
import time

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import StfmError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import Outcome
from stfm_pipeline.scoring import EVALUATED, still_meets
from stfm_pipeline.settings import Settings
from stfm_pipeline.training import Plan, fresh

log = logging.getLogger("stfm")
CHAMPION = "champion"


def champion_plan(lake: Lake, name: str) -> Plan:
    """What the decision about a champion would be made from."""
    inputs = {EVALUATED: lake.require(name, EVALUATED).data_version}
    return Plan(fingerprint({}, code_version("stfm_pipeline.registry"), inputs), inputs)


def champion_is_stale(lake: Lake, name: str) -> bool:
    return fresh(lake, name, CHAMPION, champion_plan(lake, name)) is None


def crown(name: str, lake: Lake, settings: Settings) -> Outcome:
    """Register the candidate and promote or refuse it, as the evaluation decided on gate."""
    with alone(settings.lock(name, CHAMPION), f"deciding on the champion of {name}"):
        return _crown(name, lake, settings)


def _crown(name: str, lake: Lake, settings: Settings) -> Outcome:
    from stfm_pipeline import registry
    from stfm_pipeline.evaluate.choose import Decision

    began = time.perf_counter()
    spec = get_dataset(name).spec
    evaluated, plan = lake.require(name, EVALUATED), champion_plan(lake, name)
    found = fresh(lake, name, CHAMPION, plan)
    if found is not None:
        log.info("%s champion: unchanged, no new decision", name)
        return Outcome(found, reused=True)
    if not still_meets(evaluated, settings):
        raise StfmError(
            f"the champion of '{name}' has changed since the candidate met it", fix="run it again: they will meet anew"
        )
    candidate, decision = evaluated.facts["candidate"], Decision(**evaluated.facts["decision"])
    tags = {"system": candidate["system"], "licence": spec.licence, "homepage": spec.homepage}
    tags["started"] = candidate["started"]
    number = registry.register(settings, name, candidate["uri"], candidate["run_id"], tags)
    known = {k: evaluated.facts[k] for k in ("evidence", "left", "until")} | {"run_id": candidate["run_id"]}
    record = registry.apply_decision(settings, name, number, decision, system=candidate["system"], **known)
    crowned = registry.champion_version(settings, name)
    promoted = decision.promote and crowned is not None and int(crowned.version) == number
    reason = decision.reason
    if decision.promote and not promoted:
        reason = f"decided on before (entry {record['number']}), and the crown has changed since; it stays where it is"
    facts = {
        "name": name,
        "version": number,
        "uri": f"models:/{name}/{number}",
        "system": candidate["system"],
        "promoted": promoted,
        "reason": reason,
        "until": evaluated.facts["until"],
        "decision": record,
        "licence": spec.licence,
    }
    row = pl.DataFrame([{k: json.dumps(v) for k, v in facts.items()}])
    published = lake.publish(name, CHAMPION, {"decision": row}, fingerprint=plan.mark, facts=facts, inputs=plan.inputs)
    log.info(
        "%s version %d (%s): %s, %s",
        name,
        number,
        candidate["system"],
        "promoted" if promoted else "not promoted again" if decision.promote else "refused",
        reason,
    )
    return Outcome(published, False, [], time.perf_counter() - began)
