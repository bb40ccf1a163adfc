"""Trials of a sweep in a journal of Optuna: seen by its dashboard, and known to the next run."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from irprune.api.sweep_result import Swept
from irprune.errors import IrpruneError

__all__ = ["Study"]


class Study:
    """A study of Optuna with two objectives, the share of the multiply-accumulates that is left and
    the metric.

    Args:
        path: The file of the journal; it is made where there is none.
        model: The name of the model.
        metric: The name of the metric.
        higher: Whether more of the metric is better.
        identity: Tells the model and the judge from all others; a study holds trials of one.

    Raises:
        IrpruneError: Where Optuna is not installed, and for a file that is no journal.
    """

    def __init__(self, path: str | Path, model: str, metric: str, higher: bool, identity: str):
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as missing:
            raise IrpruneError(
                "optuna is not installed", str(path), "pip install 'irprune[sweep]'"
            ) from missing
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        try:
            self._study = optuna.create_study(
                study_name=f"{model} {metric} {digest}",
                storage=JournalStorage(JournalFileBackend(str(path))),
                directions=["minimize", "maximize" if higher else "minimize"],
                load_if_exists=True,
            )
        except (OSError, ValueError, KeyError) as broken:
            raise IrpruneError(
                f"the journal cannot be read: {broken}", str(path), "name another file"
            ) from broken
        self._study.set_user_attr("objectives", ["MACs left", metric])
        self._held = {
            t.user_attrs["key"]: t.user_attrs for t in self._study.trials if "key" in t.user_attrs
        }

    def metric_of(self, key: str) -> tuple[float, float] | None:
        """The metric and the seconds of the trial ``key``; None where there was none."""
        found = self._held.get(key)
        return None if found is None else (float(found["metric"]), float(found["seconds"]))

    def add(self, row: Swept) -> None:
        """Record a trial, once."""
        import optuna

        if row.key in self._held:
            return
        choices: dict[str, Any] = {
            "importance": row.importance or "none",
            "scope": row.scope,
            "measure": row.measure,
            "share": row.share,
        }
        about = {
            "key": row.key,
            "metric": str(row.metric),
            "seconds": row.seconds,
            "params": row.params,
        }
        told = math.isfinite(row.metric)
        states = optuna.trial.TrialState
        self._study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if told else states.FAIL,
                params=choices,
                distributions={
                    k: optuna.distributions.FloatDistribution(0, 1)
                    if isinstance(v, float)
                    else optuna.distributions.CategoricalDistribution([v])
                    for k, v in choices.items()
                },
                values=[row.macs, row.metric] if told else None,
                user_attrs=about,
            )
        )
        self._held[row.key] = about
