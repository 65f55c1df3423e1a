"""What an owner decides: takes in what happens, and has its parts deal with it.

The runtime (or the virtual cluster) tells what happened: `submit`, `receive`,
`release`, `cancel`, `add_worker`, `remove_worker`, `tick`. The answer is in two
places: messages in each worker's ``outbox``, and rows that someone waits for in
`completed`. Every method may be called twice, late, or for what is already gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from dask_ownership.core import messages as m
from dask_ownership.core import restarts
from dask_ownership.core.adoption import Adoption
from dask_ownership.core.bequest import Bequests
from dask_ownership.core.borrowing import Borrowing
from dask_ownership.core.checkpoints import Checkpoints
from dask_ownership.core.copying import Copies
from dask_ownership.core.cycles import Cycles
from dask_ownership.core.desired import Desired
from dask_ownership.core.dispatch import Dispatch
from dask_ownership.core.infeasible import Infeasible
from dask_ownership.core.lending import Lending
from dask_ownership.core.lifecycle import Lifecycle
from dask_ownership.core.lineage import Lineages
from dask_ownership.core.losses import KILLED_WORKER, LOSSES, WORKERS_DIED
from dask_ownership.core.membership import Membership
from dask_ownership.core.messages import Key, Message, Process
from dask_ownership.core.moving import Moves
from dask_ownership.core.peers import Peers
from dask_ownership.core.placement import (
    HELD_UP,
    STALLED,
    Placement,
    WorkerView,
)
from dask_ownership.core.posting import Posting
from dask_ownership.core.reconstruction import Reconstruction
from dask_ownership.core.replicas import Replicas
from dask_ownership.core.results import Results
from dask_ownership.core.retention import Retention
from dask_ownership.core.row import (
    BORROWED,
    CANCELLED,
    CHECKPOINTED,
    COPY,
    DESIRED,
    ERROR,
    ESCAPED,
    FORGOTTEN,
    HAS_BORROWERS,
    INLINE,
    PUSHED,
    QUESTION,
    READY,
    REPLICATED,
    RETAINED,
    SOUGHT,
    STORED,
    TRACED,
    WAITING,
    Borrowed,
    Failure,
    Function,
    Row,
)
from dask_ownership.core.suspension import Suspensions
from dask_ownership.core.table import Table
from dask_ownership.core.timeline import Timeline

HISTORY = 10_000
"""How many unusual events are remembered."""

LOOKED_AT = 16
"""Tasks of a worker that are looked at before it is asked to give some back."""

AGAIN = tuple(dict.fromkeys(path.event for path in restarts.PATHS))
"""Events after which a task is handed out again."""


class Ownership:
    """The rows of one owner, and what becomes of them.

    Parameters
    ----------
    lock : context manager
        Covers the counts, see `Table`.
    home : str, optional
        Address of the worker in this process.
    allowed_failures : int
        How many workers may die under a task before it is given up.
    process : Process
        This one, as others know it.
    lineage_bytes : int
        How much lineage is kept.
    clock : callable, optional
        The time, for what is written into ``history``, and once a second for ``timeline``.
    max_inline : int
        Bytes of inline values above which further results stay at their workers.
    trace_inline : bool
        How inline values were made is kept, too: not to make them again, but to tell.

    Attributes
    ----------
    history : deque of tuple
        ``(key, event, detail, time)`` of unusual events, the latest `HISTORY` of them.
        A task that just runs leaves none.
    lifecycle : Lifecycle
        Takes rows from state to state.
    again : dict of str to int
        How often tasks were handed out again, by each event of `AGAIN`.
    losses : dict of str to int
        What deaths of other processes cost this one, by each of `core.losses.LOSSES`.
    timeline : Timeline
        When attempts were numbered.
    peers : Peers
        Other processes.
    lending : Lending
        What others borrow of this process.
    borrowing : Borrowing
        What this process borrows.
    checkpoints : Checkpoints
        What tasks keep for their next attempts.
    desired : Desired
        Rows that are kept until they end.
    lineages : Lineages
        How stored values can be made again.
    copies : Copies
        Copies of stored values that are being made.
    replicas : Replicas
        Values of which several copies are kept.
    moves : Moves
        Values on their way from workers that leave.
    adoption : Adoption
        Objects on their way from owners that leave.
    bequests : Bequests
        Objects that are held for the cluster.
    retention : Retention
        Tasks that are kept for what they submitted.
    reconstruction : Reconstruction
        What dead owners lost, and is looked for.
    cycles : Cycles
        Tasks that delegate to each other.
    silences : Suspensions
        Workers that do not answer.
    identity : Function or None
        Returns its argument; ``identity_call`` is the payload that calls it with a
        dependency.
    membership : Membership
        Who is in the cluster.
    posting : Posting
        The ways of what is said to other processes.
    timers : list of tuple
        ``(seconds, function, arguments)``: to be called then. The runtime takes them.
    broken : list of tuple
        What failed here, and where, in place of ending all else; the runtime logs it.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        home: str | None = None,
        allowed_failures: int = 3,
        process: Process = ("", "", ""),
        lineage_bytes: int = 1 << 30,
        clock: Callable[[], float] = float,
        max_inline: int = 1 << 30,
        trace_inline: bool = False,
    ) -> None:
        self.table = Table(lock, process)
        self.clock = clock
        self.history: deque[tuple[Key, str, str, float]] = deque(maxlen=HISTORY)
        self.again = dict.fromkeys(AGAIN, 0)
        self.losses = dict.fromkeys(LOSSES, 0)
        self.placement = Placement(home)
        self.lifecycle = Lifecycle(
            self.table,
            process[2],
            self.log,
            self.placement.add_ready,
            self._place,
            self._why_not,
            self.losses,
        )
        self.counts = self.lifecycle.counts
        self.peers = Peers(
            process,
            is_gone=lambda incarnation: self.membership.is_gone(incarnation),
            process_gone=lambda incarnation: self.membership.process_gone(incarnation),
            unheard=lambda peer: self.posting.unheard(peer),
            later=self.later,
            broke=self.broke,
        )
        refused: dict[str, WorkerView] = {}
        self.refused: dict[str, str] = {}
        self.posting = Posting(self.peers, self.placement, refused, self.later)
        self.membership = Membership(
            self.placement,
            self.peers,
            self.posting,
            refused=refused,
            reasons=self.refused,
            add=self.add_worker,
            remove=self.remove_worker,
        )
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.checkpoints = Checkpoints(self.table)
        self.lineages = Lineages(
            self.table,
            self.lifecycle,
            log=self.log,
            clock=clock,
            can_keep=self._can_keep,
            only_kept=self._only_kept,
            max_bytes=lineage_bytes,
            of_inline=trace_inline,
        )
        self.desired = Desired(self.table, self.lifecycle)
        self.copies = Copies(self)
        self.replicas = Replicas(self)
        self.moves = Moves(self)
        self.adoption = Adoption(self)
        self.bequests = Bequests(self)
        self.retention = Retention(self)
        self.reconstruction = Reconstruction(self)
        self.lending = Lending(self)
        self.borrowing = Borrowing(self)
        self.cycles = Cycles(self.table, self.lifecycle, self.borrowing.request)
        self.results = Results(self)
        self.dispatch = Dispatch(self)
        self.suspensions = Suspensions(
            self.placement, self.lifecycle, self.posting.way_is_gone, self._takes_copies
        )
        self.infeasible = Infeasible(self.placement, self.lifecycle, self.copies, self.refused)
        self.max_inline = max_inline
        self.identity: Function | None = None
        self.identity_call = b""
        self.allowed_failures = allowed_failures
        self.broken: list[tuple[str, Exception]] = []
        self.timeline = Timeline(clock)
        self._marked = 0
        self._aliases: list[Row] = []
        listen = self.lifecycle.listen
        listen(self.checkpoints, CHECKPOINTED)
        listen(self.lending, HAS_BORROWERS)
        listen(self.borrowing, BORROWED)
        listen(self.lineages, TRACED | RETAINED)
        listen(self.desired, DESIRED)
        listen(self.copies, COPY)
        listen(self.replicas, REPLICATED)
        listen(self.retention, ESCAPED)
        listen(self.reconstruction, QUESTION | SOUGHT)
        listen(self.bequests)

    def _why_not(self, row: Row) -> str:
        return self.lineages.why_not(row)

    def _can_keep(self, row: Row) -> bool:
        return self.retention.can_keep(row)

    def _only_kept(self, row: Row) -> bool:
        return self.retention.only_kept(row)

    @property
    def name(self) -> str:
        """Of this process: a client's id, or a worker's address."""
        return self.lifecycle.name

    def log(self, row: Row, event: str, detail: str) -> None:
        """Remember something unusual."""
        if event in self.again:
            self.again[event] += 1
            detail = f"attempt {row.attempt}: {detail}"
        self.history.append((row.key, event, detail, self.clock()))

    # ---- what the user does ----

    def submit(self, rows: Iterable[Row]) -> None:
        """Rows that were just adopted: find out which can start."""
        begin = self.lifecycle.begin
        todo = iter(rows)
        row: Row | None = None
        while True:
            try:
                for row in todo:
                    if row.state != WAITING:
                        if row.state == INLINE:  # a literal
                            self.lifecycle.inline_bytes += row.nbytes
                        continue  # or cancelled or forgotten before it got here
                    if row.borrowed:
                        assert isinstance(row, Borrowed)
                        if not row.attempt:
                            self.borrowing.borrow(row)
                        continue
                    begin(row)
                    if row.state == WAITING:
                        self.dispatch.chain(row)
                return
            except Exception as error:
                self.broke(row, error, "it could not be submitted")

    def put(self, row: Row, holders: Iterable[WorkerView], nbytes: int) -> None:
        """A value that was scattered: it has holders and no task."""
        if row.state > STORED:
            # It was cancelled or forgotten while its values were on their way.
            for view in holders:
                if view.alive:
                    view.outbox.append((m.CANCEL, row.key, row.attempt))
            return
        if row.state >= INLINE:
            return
        took = list(dict.fromkeys(holders))
        there = tuple([view for view in took if view.alive])
        if not there:
            addresses = ", ".join([view.address for view in took])
            detail = f"{addresses} took it and left the cluster; it was scattered"
            self.lifecycle.lose(row, detail)
            return
        self.lifecycle.finish_stored(row, nbytes, row.type_name, there, row.contains)
        for view in row.holders:
            if view.leaving:
                self.moves.away(row, view)

    def missed(self, row: Row, addresses: Iterable[str]) -> None:
        """Of those said to have a stored value, these have not got it.

        Their source may have died before they had it: it is made again, if that can be.
        """
        if isinstance(row, Borrowed):
            self.borrowing.missed(row, addresses)
        elif row.state == STORED:
            gone = {holder for holder in row.holders if holder.address in addresses}
            if gone:
                self.lifecycle.drop_holders(row, gone, "does not have it")

    def settle(self, row: Row, failure: Failure | bytes) -> None:
        """End a row that cannot go on, or that failed elsewhere with a pickled error."""
        self.lifecycle.fail(row, ERROR, failure)

    def desire(self, rows: Iterable[Row]) -> None:
        """``fire_and_forget``: keep these until they end."""
        self.desired.keep(rows)

    def release(self, rows: Iterable[Row]) -> None:
        """One handle of each row went away."""
        self.lifecycle.release(rows)

    def cancel(self, rows: Iterable[Row], detail: str) -> None:
        """End these rows and all that depend on them; borrowed ones at their owner."""
        for row in rows:
            if row.borrowed:
                assert isinstance(row, Borrowed)
                self.borrowing.request(row, "cancel", detail)
                continue
            if row.state in (FORGOTTEN, CANCELLED):
                continue
            failure = Failure("cancelled", row.key, detail, self._where(row))
            if row.state >= INLINE:
                self.lifecycle.end(row, CANCELLED, failure)
            else:
                self.lifecycle.fail(row, CANCELLED, failure)

    def cancel_children(self, parent: Any, detail: str, among: Iterable[Row] | None = None) -> None:
        """End all rows that this task submitted, or those of them that are ``among`` some."""
        rows = self.table.all() if among is None else among
        self.cancel([r for r in rows if r.options.parent == parent and not r.done], detail)

    def retry(self, rows: Iterable[Row]) -> None:
        """Run failed rows again, with the failed rows that they need, and with all rows that
        failed because one of these did, as Dask does."""
        roots: dict[Row, None] = {}
        borrowed: dict[Borrowed, None] = {}
        stack = list(rows)
        while stack:
            row = stack.pop()
            if isinstance(row, Borrowed):
                borrowed[row] = None
            elif row.state == ERROR and row.function is not None and row not in roots:
                roots[row] = None
                stack.extend(d for d in row.dependencies if d.state == ERROR)
        for row in borrowed:
            self.borrowing.retry(row)
        self.revive(roots)

    def revive(self, roots: Iterable[Row]) -> None:
        """Have failed rows wait again, and all that ended with the very error of one of them.

        Of a borrowed row only those: it waits for what its owner says.
        """
        roots = [row for row in roots if row.state == ERROR]
        if not roots:
            return
        failed_with: dict[Row, list[Row]] = {}
        for row in self.table.all():
            if row.state == ERROR and row.function is not None:
                for dependency in row.dependencies:
                    if dependency.value is row.value:
                        failed_with.setdefault(dependency, []).append(row)
        revived = dict.fromkeys(roots)
        stack = list(roots)
        while stack:
            for row in failed_with.get(stack.pop(), ()):
                if row not in revived:
                    revived[row] = None
                    stack.append(row)
        for row in revived:
            if not row.borrowed:
                asked = "it was asked for" if row in roots else "what it failed with runs again"
                self.log(row, "retried", asked)
                if row.options.died:
                    row.options = row.options.copy()
                    row.options.died, row.options.deaths = (), 0
        self.lifecycle.retry(revived)

    def close(self, detail: str) -> None:
        """The owner ends: so does every row, and no value is kept."""
        self.copies.function = None
        self.peers.leave()
        for row in self.table.all():
            if row.state != FORGOTTEN:
                self.lifecycle.end(row, CANCELLED, Failure("closed", row.key, detail))

    def abandon(self, detail: str) -> None:
        """The cluster is gone: rows whose outcome is here keep it, all others end."""
        self.copies.function = None
        self.peers.leave()
        for row in self.table.all():
            if row.state not in (INLINE, ERROR, FORGOTTEN):
                self.lifecycle.end(row, CANCELLED, Failure("scheduler-gone", row.key, detail))

    # ---- members ----

    def _takes_copies(self) -> None:
        """There is a worker that takes copies, and was not before."""
        self.moves.joined()
        self.replicas.look_at_all()

    def add_worker(self, view: WorkerView) -> None:
        """A worker joined; the same address twice changes nothing."""
        if view.address not in self.placement.workers:
            self.placement.add_worker(view)
            self.posting.joined(view)
            self._takes_copies()

    def remove_worker(
        self, view: WorkerView, reason: str = "left the cluster", reached: bool = True
    ) -> None:
        """A worker is gone: what it was given is tried elsewhere, what only it had is lost.

        ``reached`` is False when nothing that was sent to it can have arrived.
        """
        if not view.alive:
            return
        view.alive = False
        view.accepting = False
        self.placement.remove_worker(view)
        self.suspensions.gone(view)
        pushed = list(view.pushed.values())
        if reached:
            unsent = {message[2] for message in view.outbox if message[0] == m.PUSH}
        else:
            unsent = {row.attempt for row in pushed}
        may_not_begin = any(message[0] == m.GO and message[3] for message in view.outbox)
        view.pushed.clear()
        view.outbox.clear()
        self.posting.way_is_gone(view)
        for row in self.table.all():
            if view in row.holders:
                self.lifecycle.drop_holders(row, {view}, reason)
        # Nobody knows what ran: the oldest that could, as many as there are slots. What was not
        # sent yet, or waits there for another, could not; nor could a suspect of which the worker
        # said nothing; nor anything beside one that is alone, which began when it heard `GO`.
        could = [
            row
            for row in pushed
            if row.attempt not in unsent
            and not any(d.state == PUSHED for d in row.dependencies)
            and (not row.options.died or row.options.beside == row.attempt)
        ]
        alone = view.alone
        if could or alone is not None:
            self.losses[WORKERS_DIED] += 1
        suspects = set(could[: max(1, view.nthreads)]) if alone is None else {alone}
        if alone is not None and (not reached or may_not_begin):
            suspects = set()
        for row in pushed:
            if row.state != PUSHED or row.worker is not view:
                continue
            death = f"{view.address} {reason}"
            path = restarts.NEVER_SENT if row.attempt in unsent else restarts.WORKER_DIED
            suspect = row in suspects and restarts.may(path, row.options)
            if suspect and self._blamed(row, death, row is alone):
                continue
            ran = "it may have run there" if row in suspects else "it waited there"
            ran = "nothing else ran there" if row in suspects and row is alone else ran
            self.lifecycle.try_again(row, path, f"{death}; {ran}")

    def _blamed(self, row: Row, death: str, alone: bool) -> bool:
        """A worker died under a task, and perhaps of it; whether it is given up.

        The first death says nothing: others ran there, too. It counts when all that are allowed
        came while it was alone.
        """
        options = row.options = row.options.copy()
        options.died += (death,)
        options.deaths += alone
        times = len(options.died)
        if options.deaths < max(1, self.allowed_failures) or times <= self.allowed_failures:
            return False
        detail = (
            f"{times} workers died while it ran there, {options.deaths} of them while nothing "
            f"else of any owner ran there: {', '.join(options.died)}"
        )
        self.losses[KILLED_WORKER] += 1
        self.lifecycle.fail(row, ERROR, Failure("killed-worker", row.key, detail))
        return True

    def unsendable(self, view: WorkerView, message: Message, error: bytes) -> None:
        """A message to a worker cannot be packed: what needs it fails, with a pickled error."""
        kind, name = message[:2]
        if kind == m.PUSH:
            row = view.pushed.get(name)
            failed = [row] if row is not None and row.attempt == message[2] else []
        elif kind == m.FUNCTION:
            view.functions.discard(name)
            failed = [
                row
                for row in view.pushed.values()
                if row.function is not None and row.function.id == name
            ]
        elif kind == m.COPY:
            failed = []
            for row in view.pushed.values():
                for needed in row.dependencies:
                    if needed.key == name:
                        failed.append(row)
                        needed.holders = tuple([one for one in needed.holders if one is not view])
            view.copies.pop(name, None)
        else:
            failed = []  # it takes something back that never got there
        for row in failed:
            self.lifecycle.fail(row, ERROR, error)

    def broke(self, row: Row | None, error: Exception, where: str) -> None:
        """Something of this core failed while it dealt with a row: that ends, and no other."""
        if row is not None and row.state < INLINE:
            failure = Failure("internal", row.key, f"{where}: {error!r}")
            self.lifecycle.fail(row, ERROR, failure)
        self.broken.append((where, error))

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Results of a worker, in the order in which it gave them."""
        self.results.receive(view, batch, now)

    # ---- time ----

    def schedule(self, now: float) -> None:
        """Give ready rows to workers that want more."""
        placement = self.placement
        if not placement.workers:
            return
        if placement.kept:
            placement.let_go_of_kept()
        progress = True
        while progress and placement._restricted:
            progress = False
            for row, views in placement.restricted():
                if not views:
                    if self.infeasible.hopeless(row):
                        self.infeasible.fail(row)
                        progress = True
                    continue
                view = placement.choose(row, views)
                if view is not None:
                    placement.take_restricted(row)
                    try:
                        self.dispatch.push(row, view, now)
                    except Exception as error:
                        self.broke(row, error, f"it could not be pushed to {view.address}")
                    progress = True
        if placement._restricted:
            placement.keep_for_waiting()
        take_ready = placement.take_ready
        push = self.dispatch.push
        while (taken := take_ready()) is not None:
            try:
                push(taken[0], taken[1], now)
            except Exception as error:
                self.broke(taken[0], error, f"it could not be pushed to {taken[1].address}")
        attempts = self.lifecycle.numbers
        if attempts != self._marked:
            self._marked = attempts
            self.timeline.mark(attempts, now)

    def hurry(self, rows: Iterable[Row], now: float) -> None:
        """Parked tasks of the worker in this process wait for these, and nothing else may begin
        there: the ready ones go there though it wants no more (`core.crowd`)."""
        placement = self.placement
        home = placement.workers.get(placement.home or "")
        if home is None or not home.accepting:
            return
        for row in rows:
            waits = row.state == READY and not row.options.at_most_once
            if waits and home in placement.allowed(row):
                self.dispatch.push(row, home, now)

    def tick(self, now: float) -> bool:
        """Recall queued work for idle workers; whether to be called again soon."""
        views = list(self.placement.workers.values())
        idle = sum(1 for view in views if view.idle)
        if not idle or self.placement.any_ready:
            return False
        again = False
        for view in views:
            if not view.active or len(views) < 2 or view.suspended:
                continue
            again = True
            # What it has may wait for tasks of other owners, of which nothing is known here.
            spare = max(view.active - view.nthreads, 0)
            if view.recalled or now - view.heard < (STALLED if spare else HELD_UP):
                continue
            last = islice(reversed(view.pushed.values()), LOOKED_AT)
            if all(len(self.placement.allowed(row)) < 2 for row in last):
                continue  # no other worker may run them
            view.recalled = True
            view.outbox.append((m.RECALL, max(1, spare // 2 + spare % 2)))
        return again

    def later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        """Have something called when a time has passed, unless this owner is closed by then."""
        self.timers.append((seconds, function, args))

    # ---- one row ----

    def _place(self, row: Row) -> None:
        """A row has all that it needs: it is given to whoever chooses a worker, or has the value
        of another already."""
        if row.function is self.identity:
            source = row.dependencies[0]
            if source.state == INLINE:
                self._aliases.append(row)
                if len(self._aliases) == 1:
                    self._pass_on()
                return
            if row.options.workers is None and (view := self._where_stored(source)) is not None:
                # It takes no slot there, and nothing is to be moved.
                self.dispatch.push(row, view, view.heard)
                return
        self.placement.add_ready(row)

    def _pass_on(self) -> None:
        """Give aliases the value of what they are aliases of.

        Each may be what the next one waits for: a chain of any length ends in this loop.
        """
        for row in self._aliases:
            if row.state != READY:
                continue  # it was ended together with one before it
            try:
                self.lifecycle.finish_as(row, row.dependencies[0])
            except Exception as error:
                self.broke(row, error, "it could not get the value of another")
        self._aliases.clear()

    def _where_stored(self, source: Row) -> WorkerView | None:
        """A worker with a value that takes tasks."""
        workers = self.placement.workers
        addresses = source.addresses if isinstance(source, Borrowed) else ()
        views = [workers.get(address) for address in addresses] or source.holders
        return next((v for v in views if v is not None and v.accepting and not v.suspended), None)

    def _where(self, row: Row) -> str:
        """Who owns a row and where it is, for one who asks what became of it."""
        views = (row.worker,) if row.state == PUSHED else row.holders
        at = ", ".join([view.address for view in views])
        return f"owned by {self.name}" + (f", at {at}" if at else ", not at any worker")
