# SPDX-License-Identifier: Apache-2.0
"""The night: six stages in order, one ledger record after each.

After the swap the latest image is started by its name where a target has a tenant for that (the canary); a red one is
rolled back in the same run. A stage that has finished in a run is not done again, so a night that was cut off goes on
where it stopped. A red image ends the night before anything is signed; an exception is a broken factory, and its stage
is recorded as such.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from factory.build import build
from factory.canaries import judge_all, taken_back, wanted
from factory.canary import STAGE as CANARY
from factory.canary import stands
from factory.describe import describe
from factory.diff.note import write_notes
from factory.errors import StoreError
from factory.gc import expect_space
from factory.inputs.age import Trust, suite_ages
from factory.inputs.signers import Signers
from factory.installation import Installation
from factory.ledger import Ledger, detail_of
from factory.model import (
    Artifact,
    Bundle,
    Canaries,
    Publication,
    Recipe,
    Rotations,
    Step,
    Verdict,
)
from factory.policy import Decision, Published, due, overdue
from factory.promises import NIGHT, Promise
from factory.publish import publish
from factory.record import PROMISES, Record, Say, StageResult, Value
from factory.retention import sweep
from factory.rotate import rotate
from factory.sign import sign
from factory.store import open_store
from factory.store.directory import publish_directory
from factory.store.protocol import ImageStore
from factory.system.files import remove
from factory.system.lock import exclusive
from factory.system.state import Run
from factory.unchanged import compare_with
from factory.verify import verify
from factory.watch import promises_of

NEEDED_BYTES = 6 << 30
"""Free space a night wants before it starts: root tree and raw disk where memory is short, image, logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What a night did: ``outcome`` is published, withheld, unchanged or red, ``reason`` says why in words.

    ``stale`` are repositories whose mirror is too far behind: nothing is published from them until they follow.
    ``promises`` are those to users that are broken, or will be before the next night.
    ``own_cpu_s`` is the processor time of the factory itself since it was started, without the programs it called.
    """

    image: str
    run: Run
    outcome: str
    reason: str
    stages: tuple[StageResult, ...]
    own_cpu_s: float
    verdict: Verdict | None = None
    rotations: Rotations | None = None
    canaries: Canaries | None = None
    stale: tuple[str, ...] = ()
    promises: tuple[Promise, ...] = ()


def nightly(
    image: str,
    *,
    here: Installation,
    ledger: Ledger | None,
    now: Callable[[], datetime],
    say: Say,
    force: bool = False,
    allow_dirty: bool = False,
    allow_stale: bool = False,
) -> Night:
    """Make one image and, when it is green, what ``<line>_latest`` means.

    Args:
        ledger: where the night is recorded; None when it cannot be written, which stops nothing.
        force: make and publish an image even though nothing changed since the last one.
        allow_dirty: publish although the descriptions differ from their commit.
        allow_stale: publish although a mirror is further behind than the site file allows.

    Raises:
        LineHeld: another factory works on this image here, or on its line in Glance.
        FactoryError: a stage could not be carried out; what it left is in the run's folder.
    """
    with exclusive(here.state.locks / f"{image}.lock", what=f"image {image}"):
        expect_space(here.state, NEEDED_BYTES)
        owed = owed_canary(image, here=here, ledger=ledger, now=now, say=say)
        if owed is not None and owed.outcome == "red":
            return owed
        line = start(image, here=here, ledger=ledger, now=now, say=say, force=force)
        if line.unchanged_since:
            unchanged = f"nothing changed since run {line.unchanged_since}: {line.compared}"
            judge = here.site.freshness and not allow_stale
            stale = line.stale(line.of_earlier("build", Artifact)) if judge else ()
            # a mirror that stands still has no news: that is how it shows
            return line.end("unchanged", f"{unchanged}, but {_said(stale)}" if stale else unchanged, stale=stale)
        recipe = line.describe()
        artifact = line.build(recipe)
        verdict = line.verify(artifact)
        if not verdict.passed:
            return line.end("red", f"{len(verdict.failures)} of {len(verdict.checks)} checks failed")
        bundle = line.sign(artifact, verdict)
        publication = line.publish(bundle, force=force, allow_dirty=allow_dirty, allow_stale=allow_stale)
        if not publication.releases:
            return line.end("withheld", publication.reason, stale=publication.stale)
        line.rotate(publication)
        return line.end_published(publication)


def owed_canary(
    image: str, *, here: Installation, ledger: Ledger | None, now: Callable[[], datetime], say: Say
) -> Night | None:
    """Do the canary that a night was cut off before, whatever has changed since: its image is what users get."""
    for run in [run for run in here.state.runs_of(image) if run.has("rotate") and run.has("publish")][:1]:
        line = Line(run=run, here=here, ledger=ledger, now=now, say=say)
        publication = run.read("publish", Publication)
        if not run.has(CANARY) and wanted(publication, here.site):
            say(CANARY, f"the canary of run {run.id}, which was cut off, comes first")
            line.begin()
            return line.end_published(publication)
    return None


def start(
    image: str, *, here: Installation, ledger: Ledger | None, now: Callable[[], datetime], say: Say, force: bool
) -> Line:
    """A new run of ``image``, or the newest built one when it was cut off and is about the same inputs.

    A fresh recipe tells: when nothing that matters changed since an unfinished run, that run goes on; since a finished
    one, there is nothing to do, unless ``force`` or what the line published last is four weeks old.
    """
    earlier = tuple(run for run in here.state.runs_of(image) if run.has("build"))
    line = Line(run=here.state.new_run(image, now()), here=here, ledger=ledger, now=now, say=say)
    recipe = line.describe()
    for run in earlier[:1]:
        compared = compare_with(run, recipe, here=here, now=now(), say=line.saying("describe"))
        say("describe", f"compared with run {run.id}: {compared.why}")
        if not compared.same:
            break
        waiting = run.has("publish") and not run.read("publish", Publication).releases
        if waiting and line.is_due(run):
            say("describe", f"the image of run {run.id}, which was not published, is due now")
            remove(run.file("publish"))
            waiting = False
        finished = stands(run) or waiting
        if finished and not force and not line.overdue():
            line.unchanged_since, line.compared = run.id, compared.why
        elif not finished and not is_red(run):
            say("describe", f"going on with run {run.id}, which was cut off")
            remove(line.run.path)
            line = Line(run=run, here=here, ledger=ledger, now=now, say=say)
    line.begin()
    return line


def is_red(run: Run) -> bool:
    """Whether the run ended with failed checks, or with an image that was taken back."""
    failed = run.has("verify") and not run.read("verify", Verdict).passed
    return failed or (run.has("rotate") and not stands(run))


@dataclass(kw_only=True)
class Line(Record):
    """The six stages of one run: each takes the frozen value before it and returns the next."""

    here: Installation
    unchanged_since: str = ""
    compared: str = ""

    def describe(self) -> Recipe:
        return self.stage(
            "describe",
            Recipe,
            lambda: describe(
                self.here.project,
                self.run.image,
                site=self.here.site,
                regions=self.here.regions(self.now()),
                run=self.run,
                now=self.now(),
            ),
        )

    def build(self, recipe: Recipe, *, fresh: bool = False) -> Artifact:
        return self.stage(
            "build",
            Artifact,
            lambda: build(
                recipe,
                run=self.run,
                state=self.here.state,
                say=self.saying("build"),
                now=self.now(),
                logins=self.here.logins(self.run.image),
                fresh=fresh,
            ),
        )

    def verify(self, artifact: Artifact) -> Verdict:
        here, say, tenant = self.here, self.saying("verify"), self.here.site.sandbox
        where = partial(verify, artifact, run=self.run, state=here.state, suite=here.suite, tenant=tenant)
        verdict = self.stage("verify", Verdict, lambda: where(say=say, now=self.now()))
        if verdict.passed:
            write_notes(self.run, line=artifact.recipe.description.line, say=say)
        return verdict

    def sign(self, artifact: Artifact, verdict: Verdict) -> Bundle:
        return self.stage(
            "sign",
            Bundle,
            lambda: sign(
                artifact,
                verdict,
                run=self.run,
                state=self.here.state,
                signing=self.here.site.signing,
                keys=self.here.project / "keys",
                now=self.now(),
                say=self.saying("sign"),
            ),
        )

    def publish(
        self, bundle: Bundle, *, force: bool = False, allow_dirty: bool = False, allow_stale: bool = False
    ) -> Publication:
        """Publish what is due; from a mirror that is behind nothing, and the next night asks again."""
        if not self.run.has("publish") and not allow_stale and (stale := self.stale(bundle.artifact)):
            return self._withhold(stale)
        return self.stage("publish", Publication, lambda: self._publish(bundle, force=force, allow_dirty=allow_dirty))

    def _withhold(self, stale: tuple[str, ...]) -> Publication:
        """Say that a green image is not published; unlike a decision of the policy, this is not kept."""
        withheld = Publication(releases=(), reason=f"green, but not published: {_said(stale)}", stale=stale)
        self.note("publish", "withheld", self.now(), 0.0, note=withheld.reason, detail=detail_of(withheld))
        self.say("publish", f"withheld: {withheld.reason}")
        return withheld

    def rotate(self, publication: Publication) -> Rotations:
        return self.stage("rotate", Rotations, lambda: self._rotate(publication))

    def canary(self, publication: Publication) -> Canaries | None:
        """Start what was released by its name, and take back what does not stand; None where no target wants it."""
        if not wanted(publication, self.here.site) and not self.run.has(CANARY):
            return None
        return self.stage(CANARY, Canaries, lambda: self._canary(publication))

    def _canary(self, publication: Publication) -> Canaries:
        found, images = judge_all(publication, run=self.run, here=self.here, now=self.now, say=self.saying(CANARY))
        self.images = images or self.images
        return found

    def _publish(self, bundle: Bundle, *, force: bool, allow_dirty: bool) -> Publication:
        recipe = bundle.artifact.recipe
        if recipe.dirty and not allow_dirty:
            why = "the descriptions differ from their commit; see --allow-dirty"
            return Publication(releases=(), reason=f"green, but not published: {why}")
        decision = self._due(bundle.artifact, force=force)
        if not decision.publish:
            return Publication(releases=(), reason=f"green, but not published: {decision.reason}")
        releases = []
        for target in self.here.site.targets:
            with open_store(target, state=self.here.state, say=self.saying("publish")) as store:
                releases.append(publish(bundle, store=store, target=target, now=self.now(), say=self.saying("publish")))
        for release in releases:  # a cloud in which a name was taken has another one
            publish_directory(bundle, release.dated_name, dist=self.here.state.dist, target=release.target)
        return Publication(releases=tuple(releases), reason=decision.reason)

    def _rotate(self, publication: Publication) -> Rotations:
        rotations = []
        for release in publication.releases:
            with open_store(release.target, state=self.here.state, say=self.saying("rotate")) as store:
                rotated = rotate(release, store=store, now=self.now(), say=self.saying("rotate"))
                rotations.append(replace(rotated, swept=self._sweep(rotated.line, store)))
                self.images += store.list_line(rotated.line)
        return Rotations(rotations=tuple(rotations))

    def _sweep(self, line: str, store: ImageStore) -> tuple[Step, ...]:
        """Delete what has outlived its promise; trouble with old images is said and fails no night."""
        retention = self.run.read("describe", Recipe).description.retention
        try:
            swept = sweep(line, store=store, now=self.now(), say=self.saying("rotate"), grace_days=retention.grace_days)
        except StoreError as trouble:
            self.say("rotate", f"old images were not looked at: {trouble.message}")
            return ()
        return swept.steps

    def stale(self, artifact: Artifact) -> tuple[str, ...]:
        """The mirrors that this image was built from and that are further behind than the site file allows."""
        recipe, state = artifact.recipe, self.here.state
        ages = suite_ages(
            artifact.lock,
            blobs=state.blobs,
            trust=Trust(keyrings=recipe.keyrings, pinned=recipe.signers, signers=Signers(state.signers)),
            wanted=self.here.site.freshness,
            now=self.now(),
        )
        for age in ages:
            if age.why:
                self.say("publish", f"{age.alias} {age.suite}: {age.why}; its index is compared with the clock")
        return tuple(str(age) for age in ages if age.stale)

    def overdue(self) -> bool:
        """Whether the line's published image is so old that an equal one is made anew."""
        policy = self.run.read("describe", Recipe).description.publish
        why = overdue(policy, self._last_published(), now=self.now())
        if why:
            self.say("describe", why)
        return bool(why)

    def is_due(self, run: Run) -> bool:
        """Whether the image of a run that was withheld would be published now."""
        artifact = run.read("build", Artifact)
        return not artifact.recipe.dirty and self._due(artifact, force=False).publish

    def of_earlier(self, name: str, kind: type[Value]) -> Value:
        """A stage's value of the run since which nothing changed."""
        return self.here.state.run_of(self.run.image, self.unchanged_since).read(name, kind)

    def _due(self, artifact: Artifact, *, force: bool) -> Decision:
        recipe = artifact.recipe
        return due(
            recipe.description.publish,
            artifact.packages,
            self._last_published(),
            now=self.now(),
            force=force,
            repositories=recipe.repositories,
        )

    def _last_published(self) -> Published | None:
        for run in self.here.state.runs_of(self.run.image):
            if run.id != self.run.id and stands(run):
                artifact = run.read("build", Artifact)
                return Published(at=run.read("rotate", Rotations).rotations[0].rotated_at, packages=artifact.packages)
        return None

    def end_published(self, publication: Publication) -> Night:
        """The end of a night whose image became the latest: published, or taken back after its canary."""
        canaries = self.canary(publication)
        if canaries is None or canaries.green:
            return self.end("published", publication.reason)
        fallen = [one for one in canaries.canaries if not one.green]
        return self.end("red", "; ".join(f"the canary in {one.tenant} is red, {taken_back(one)}" for one in fallen))

    def end(self, outcome: str, reason: str, *, stale: tuple[str, ...] = ()) -> Night:
        """Close the record and sum the night up."""
        self.close(outcome, reason)
        return Night(
            image=self.run.image,
            run=self.run,
            outcome=outcome,
            reason=reason,
            stages=tuple(self.results),
            own_cpu_s=time.process_time(),
            verdict=self.run.read("verify", Verdict) if self.run.has("verify") else None,
            rotations=self.run.read("rotate", Rotations) if self.run.has("rotate") else None,
            canaries=self.run.read(CANARY, Canaries) if self.run.has(CANARY) else None,
            stale=stale,
            promises=self.promises(),
        )

    def promises(self) -> tuple[Promise, ...]:
        """What will be broken of what users were promised unless the next night mends it; each is said."""
        found = promises_of(
            self.run.read("describe", Recipe).description,
            here=self.here,
            ledger=self.ledger,
            now=self.now(),
            say=self.saying(PROMISES),
            ahead=NIGHT,
        )
        for one in found or ():
            self.say(PROMISES, str(one))
        self.keep_promises(found or ())
        return found or ()


def _said(stale: tuple[str, ...]) -> str:
    return f"a mirror does not follow its archive: {'; '.join(stale)}"
