"""The core of an owner: takes in events, and has its parts decide what to do.

The driver (the runtime or the virtual cluster) tells what happened: `submit`, `receive`,
`release`, `cancel`, `add_worker`, `remove_worker`, `tick`. The decisions are in two places:
messages in each worker's ``outbox``, and all other effects in `rows.effects`. Every method may be
called twice, late, or for a row or worker that is gone already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from dask_ownership.core.owner.departures import Departures
from dask_ownership.core.owner.membership import Membership
from dask_ownership.core.owner.recovery.checkpoints import Checkpoints
from dask_ownership.core.owner.recovery.copying import Copies
from dask_ownership.core.owner.recovery.lineage import Lineages
from dask_ownership.core.owner.recovery.moving import Moves
from dask_ownership.core.owner.recovery.replicas import Replicas
from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.references.delegation import Delegations
from dask_ownership.core.owner.references.detached import DetachedObjects
from dask_ownership.core.owner.references.lending import Lending
from dask_ownership.core.owner.references.peers import Peers
from dask_ownership.core.owner.references.posting import Posting
from dask_ownership.core.owner.references.reconstruction import Reconstruction
from dask_ownership.core.owner.references.retention import Retention
from dask_ownership.core.owner.references.transfer import OwnershipTransfer
from dask_ownership.core.owner.results import Results
from dask_ownership.core.owner.rows.attempt_times import AttemptTimes
from dask_ownership.core.owner.rows.attempts import AttemptRecords
from dask_ownership.core.owner.rows.desired import Desired
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.failure_counts import LOSSES
from dask_ownership.core.owner.rows.history import History
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.retries import failed_for, revive
from dask_ownership.core.owner.rows.row import (
    BORROWED,
    COPY,
    DESIRED,
    EXPORTED,
    HAS_BORROWERS,
    QUESTION,
    REPLICATED,
    RETAINED,
    SEARCHED,
    TRACED,
    TRIED,
    Borrowed,
    Row,
)
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.aliases import Aliases
from dask_ownership.core.owner.scheduling.builtin import NO_FUNCTIONS, BuiltinFunctions
from dask_ownership.core.owner.scheduling.dispatch import Dispatch
from dask_ownership.core.owner.scheduling.infeasible import Infeasible
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.owner.scheduling.schedule import Scheduling
from dask_ownership.core.owner.scheduling.suspension import Suspensions
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Message, Process
from dask_ownership.core.protocol.names import NAME
from dask_ownership.core.protocol.states import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    PUSHED,
    STORED,
    WAITING,
)


class OwnerCore:
    """The rows of one owner, and the parts that decide what becomes of the rows.

    Each part below decides one thing, and gets what it needs when it is made here. A part is told
    of rows by `Lifecycle.listen`, and of messages by a table of handlers. A part that needs a part
    made later gets a function that finds the later part. The class makes all parts and passes
    events on to each, and so has more attributes and methods than other classes.

    Parameters
    ----------
    lock : context manager
        Covers the counts, see `Table`.
    home : str, optional
        Address of the worker in this process.
    process : Process
        This process, as other processes know it.
    clock : callable, optional
        Returns the wall-clock time in seconds, for ``history``, ``attempt_times`` and ``lineages``.
    trace_inline : bool
        The lineage of inline values is kept as well: not to make the values again, but to tell a
        user how each value was made.
    limits : Limits, optional
    functions : BuiltinFunctions
        The functions that workers call for the owner itself.

    Attributes
    ----------
    effects : OwnerEffects
        What the driver has to do.
    history : History
        Unusual events of rows.
    losses : dict of str to int
        What deaths of other processes cost this process, by the names in
        `rows.failure_counts.LOSSES`.
    attempt_times : AttemptTimes
        When the owner gave out the numbers of attempts.
    functions, limits : BuiltinFunctions, Limits
        As given.
    attempts : AttemptRecords
        What attempts of tasks left behind.
    table : Table
        The rows and their counts.
    lifecycle : Lifecycle
        Takes rows from state to state.
    counts : dict of str to int
        How many rows were submitted, are done and have failed.
    placement : Placement
        Ready rows, and the worker for each.
    peers, posting : Peers, Posting
        Other processes, and the ways of posts to them.
    refusals : dict of str to str
        Addresses of members that do not take a link of this process, each with the reason.
    membership : Membership
        The members of the cluster.
    departures, suspensions : Departures, Suspensions
        Workers that are gone, and workers that do not answer.
    dispatch, aliases, infeasible, scheduling : Dispatch, Aliases, Infeasible, Scheduling
        How rows get to workers, or end without a worker.
    results : Results
        Takes in the answers of workers.
    desired : Desired
        Rows that are kept until they end.
    checkpoints : Checkpoints
        Small state that tasks keep for their next attempts.
    lineages : Lineages
        How stored values can be made again.
    copies, replicas, moves : Copies, Replicas, Moves
        Copies of stored values: how copies are made, which are kept, and which leave a worker.
    borrowing, lending : Borrowing, Lending
        Objects of other owners that this process borrows, and objects of this process that other
        processes borrow.
    retention, reconstruction : Retention, Reconstruction
        Parents that are kept for their children, and objects of dead owners that are made again.
    delegations : Delegations
        Tasks whose value is the value of another task.
    transfer, detached : OwnershipTransfer, DetachedObjects
        Objects that change their owner: objects of leaving owners, and objects that are held for
        the cluster.
    workers : dict of str to WorkerView
        The workers that this owner uses, by address.
    process, home, traces_inline
        As given.
    row, rows, hold, origin_of, value_name, when_acknowledged, keep_copies : callable
    copy_targets, is_copied, move, describe, why_not, members_in_doubt, workers_named : callable
        Methods of the parts, for other layers of the package.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        home: str | None = None,
        *,
        process: Process = ("", "", ""),
        clock: Callable[[], float] = float,
        trace_inline: bool = False,
        limits: Limits | None = None,
        functions: BuiltinFunctions = NO_FUNCTIONS,
    ) -> None:
        self.effects = OwnerEffects()
        self.history = History(clock)
        self.losses = dict.fromkeys(LOSSES, 0)
        self.attempt_times = AttemptTimes(clock)
        self._marked = 0  # the last attempt number in `attempt_times`
        self.functions = functions
        self.limits = limits = limits or Limits()
        self.attempts = AttemptRecords()
        self.table = Table(lock, process)
        self.placement = Placement(home)
        self.lifecycle = Lifecycle(
            self.table,
            process[NAME],
            log=self.history.log,
            queue=self.placement.add_ready,
            place=self._place,
            why_not=lambda row: self.lineages.why_not(row),
            losses=self.losses,
            effects=self.effects,
            attempts=self.attempts,
        )
        self.counts = self.lifecycle.counts

        # Other processes and the workers of the cluster. The lambdas find parts made later.
        self.peers = Peers(
            process,
            is_gone=lambda incarnation: self.membership.is_gone(incarnation),
            process_gone=lambda incarnation: self.membership.process_gone(incarnation),
            unheard=lambda peer: self.posting.unheard(peer),
            effects=self.effects,
        )
        refused: dict[str, WorkerView] = {}
        self.refusals: dict[str, str] = {}
        self.posting = Posting(self.peers, self.placement, refused, self.effects)
        self.membership = Membership(
            self.placement,
            self.peers,
            self.posting,
            refused=refused,
            refusals=self.refusals,
            add=self.add_worker,
            remove=self.remove_worker,
        )
        self.suspensions = Suspensions(
            self.placement, self.lifecycle, self.posting.way_is_gone, self._takes_copies
        )
        self.departures = Departures(
            self.lifecycle, self.placement, self.suspensions, self.posting, limits
        )

        # How rows get to workers.
        self.dispatch = Dispatch(
            self.lifecycle,
            self.placement,
            functions,
            watch_children=lambda row: self.reconstruction.watch_children(row),
            limits=limits,
        )
        self.aliases = Aliases(self.lifecycle, self.placement, self.dispatch, self.broke)
        self.copies = Copies(self.lifecycle, self.placement, functions, self.submit)
        self.replicas = Replicas(self.lifecycle, self.copies)
        self.moves = Moves(self.lifecycle, self.placement, self.copies, self.replicas)
        self.infeasible = Infeasible(self.placement, self.lifecycle, functions, self.refusals)
        self.scheduling = Scheduling(self.placement, self.dispatch, self.infeasible, self.broke)

        # Rows, checkpoints and tasks that are kept in case they are needed.
        self.desired = Desired(self.table, self.lifecycle)
        self.checkpoints = Checkpoints(self.table, self.attempts)
        self.lineages = Lineages(
            self.table,
            self.lifecycle,
            log=self.history.log,
            clock=clock,
            can_keep=lambda row: self.retention.can_keep(row),
            only_kept=lambda row: self.retention.only_kept(row),
            limits=limits,
            of_inline=trace_inline,
        )

        # Objects that several processes know.
        self.retention = Retention(
            self.table, self.peers, self.lineages, functions.identity, self.effects
        )
        self.borrowing = Borrowing(
            self.lifecycle,
            self.peers,
            hold_inside=lambda origins: self.detached.hold_inside(origins),
            limits=limits,
        )
        self.lending = Lending(
            self.lifecycle,
            self.peers,
            self.history,
            missed=self.missed,
            ask=lambda key, path: self.reconstruction.ask(key, path),
            asked_again=lambda *asked: self.reconstruction.asked_again(*asked),
            delegated=lambda row: self.delegations.waits_for_itself(row),
            alias=functions.identity,
        )
        self.reconstruction = Reconstruction(
            self.lifecycle,
            self.peers,
            lineages=self.lineages,
            retention=self.retention,
            borrowing=self.borrowing,
            lending=self.lending,
            alias=functions.identity,
            submit=self.submit,
            is_gone=self.membership.is_gone,
            call_off_copies=self.copies.call_off,
        )
        self.delegations = Delegations(
            self.lifecycle,
            self.lineages,
            self.borrowing,
            functions,
            submits_no_more=self.reconstruction.submits_no_more,
        )
        self.transfer = OwnershipTransfer(
            self.lifecycle,
            self.peers,
            retention=self.retention,
            borrowing=self.borrowing,
            lending=self.lending,
            functions=functions,
            submit=self.submit,
        )
        self.detached = DetachedObjects(self.lifecycle, self.borrowing, functions, self.submit)
        self.lending.requests.update(
            cancel=lambda row, detail: self.cancel([row], detail),
            retry=lambda row, _: self.retry([row]),
            follow=self.delegations.follow,
        )

        # The listeners to the life of rows, in the order in which each event reaches them.
        listen = self.lifecycle.listen
        listen(self.checkpoints, TRIED)
        listen(self.lending, HAS_BORROWERS)
        listen(self.borrowing, BORROWED)
        listen(self.lineages, TRACED | RETAINED)
        listen(self.desired, DESIRED)
        listen(self.copies, COPY)
        listen(self.replicas, REPLICATED)
        listen(self.retention, EXPORTED)
        listen(self.reconstruction, QUESTION | SEARCHED)
        listen(self.detached)
        listen(self.attempts, TRIED)

        # The handlers of workers' messages.
        self.results = Results(
            self.lifecycle,
            self.placement,
            dispatch=self.dispatch,
            borrowing=self.borrowing,
            suspensions=self.suspensions,
            away=self.moves.away,
            broke=self.broke,
        )
        self.results.ends[m.DELEGATED] = self.delegations.on_delegated
        self.results.running[m.CHECKPOINT] = self.checkpoints.on_checkpoint
        self.results.running[m.CHILD_SUBMITTED] = self.reconstruction.on_child_submitted
        self.results.late[m.CHECKPOINT] = self.checkpoints.on_checkpoint_late
        self.results.late[m.CHILD_SUBMITTED] = self.reconstruction.on_child_submitted_late
        self.results.of_no_task[m.ACCEPTING] = self.moves.on_accepting
        self.results.of_no_task[m.LEAVING] = self.moves.on_leaving
        self.results.of_no_task[m.POST] = self.peers.on_post

        # The face for other layers of the package, without a call in between.
        self.row = self.table.rows.get
        self.rows = self.table.all
        self.hold = self.table.hold
        self.origin_of = self.table.origin_of
        self.value_name = self.table.value_name
        self.when_acknowledged = self.borrowing.when_acknowledged
        self.keep_copies = self.replicas.want
        self.copy_targets = self.copies.places
        self.is_copied = self.copies.going
        self.move = self.moves.to
        self.describe = self.detached.describe
        self.why_not = self.lineages.why_not
        self.members_in_doubt = self.membership.ask
        self.workers = self.placement.workers
        self.workers_named = self.placement.matching
        self.process = process
        self.home = home
        self.traces_inline = trace_inline

    @property
    def has_rows(self) -> bool:
        """Whether this process owns or borrows anything."""
        return bool(self.table.rows)

    @property
    def name(self) -> str:
        """Name of this process: a client's id, or a worker's address."""
        return self.lifecycle.name

    # ---- what the user does ----

    def submit(self, rows: Iterable[Row]) -> None:
        """Begin rows that were just adopted: each waits, is ready, or is pushed at once."""
        begin = self.lifecycle.begin
        # One iterator for all rounds: after an error the loop goes on with the next row.
        todo = iter(rows)
        row: Row | None = None
        while True:
            try:
                for row in todo:
                    if row.state != WAITING:
                        if row.state == INLINE:
                            self.lifecycle.count_literal(row)
                        continue  # a literal, or cancelled or forgotten in the inbox
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

    def put(self, row: Row, locations: Iterable[WorkerView], nbytes: int) -> None:
        """End the row of a scattered value, of ``nbytes``, which has locations and no task."""
        if row.state > STORED:
            # The row was cancelled or forgotten while the value was on its way to the workers.
            for view in locations:
                if view.alive:
                    view.outbox.append((m.CANCEL, row.key, row.attempt))
            return
        if row.state >= INLINE:
            return
        took = list(dict.fromkeys(locations))
        there = tuple([view for view in took if view.alive])
        if not there:
            addresses = ", ".join([view.address for view in took])
            detail = f"{addresses} took it and left the cluster; it was scattered"
            self.lifecycle.lose(row, detail)
            return
        self.lifecycle.finish_stored(row, nbytes, row.type_name, there, row.contains)
        for view in row.locations:
            # The worker said that it leaves while the value was on its way.
            if view.leaving:
                self.moves.away(row, view)

    def expect(self, key: Key, options: Options) -> Row:
        """Add and return a row with a local reference, whose value is on its way; see `put`."""
        row = self.table.adopt(Row(key, None, None, (), 0, options))
        self.lifecycle.numbers += 1
        row.attempt = self.lifecycle.numbers
        return row

    def hold_for_cluster(self) -> None:
        """Have this process hold detached objects from now on, on behalf of the cluster."""
        self.detached.holds = True

    def missed(self, row: Row, addresses: Iterable[str]) -> None:
        """Take in that locations at some addresses do not have a stored value.

        A location may have been told to fetch the value from a worker that died. Without a further
        location the value is made again, if it can be.
        """
        if isinstance(row, Borrowed):
            self.borrowing.missed(row, addresses)
        elif row.state == STORED:
            gone = {view for view in row.locations if view.address in addresses}
            if gone:
                self.lifecycle.drop_locations(row, gone, "does not have it")

    def settle(self, row: Row, failure: Failure | bytes) -> None:
        """End a row with a failure, or a pickled error, that was found outside of the core."""
        self.lifecycle.fail(row, ERROR, failure)

    def desire(self, rows: Iterable[Row]) -> None:
        """Keep rows until they end, for ``fire_and_forget``."""
        self.desired.keep(rows)

    def release(self, rows: Iterable[Row]) -> None:
        """Let go of one local reference of each row."""
        self.lifecycle.release(rows)

    def cancel(self, rows: Iterable[Row], detail: str) -> None:
        """Cancel rows and their dependents; a borrowed row is cancelled by its owner."""
        for row in rows:
            if row.borrowed:
                assert isinstance(row, Borrowed)
                self.borrowing.request(row, "cancel", detail)
                continue
            if row.state in (FORGOTTEN, CANCELLED):
                continue
            failure = Failure("cancelled", row.key, detail, self._where(row))
            # No row waits for an ended row; ready rows that need the value fail when pushed.
            if row.state >= INLINE:
                self.lifecycle.end(row, CANCELLED, failure)
            else:
                self.lifecycle.fail(row, CANCELLED, failure)

    def pending(self) -> list[Row]:
        """Return the rows whose tasks users submitted to this owner and that have not ended."""
        return [
            row
            for row in self.table.all()
            if WAITING <= row.state <= PUSHED and not row.roles & (BORROWED | COPY)
        ]

    def cancel_children(self, parent: Any, detail: str, among: Iterable[Row] | None = None) -> None:
        """Cancel the unfinished children of a task, but none that another task or process has.

        ``parent`` is the task as in `Options.parent`, ``detail`` says why, for people, and
        ``among`` are the rows to look at, in place of all rows.
        """
        rows = self.table.all() if among is None else among
        self.cancel([r for r in rows if r.options.parent == parent and not r.done], detail)

    def retry(self, rows: Iterable[Row]) -> None:
        """Run failed rows again, with the failed rows that they need, as Dask does.

        Rows that inherited the error of a retried row run again as well.
        """
        owned, borrowed = failed_for(rows)
        for row in borrowed:
            self.borrowing.retry(row)
        revive(self.lifecycle, owned)

    def close(self, detail: str) -> None:
        """End the owner, and every row with it: no value is kept."""
        self.copies.closed = True
        self.peers.leave()
        for row in self.table.all():
            if row.state != FORGOTTEN:
                self.lifecycle.end(row, CANCELLED, Failure("closed", row.key, detail))

    def abandon(self, detail: str) -> None:
        """End the owner because the cluster is gone: only outcomes at the owner are kept.

        Inline values and errors stay readable; all other rows end.
        """
        self.copies.closed = True
        self.peers.leave()
        for row in self.table.all():
            if row.state not in (INLINE, ERROR, FORGOTTEN):
                self.lifecycle.end(row, CANCELLED, Failure("scheduler-gone", row.key, detail))

    def readable(self) -> tuple[int, int]:
        """Return how many values and how many errors of futures `abandon` would keep."""
        states = [row.state for row in self.table.all() if row.local_refs]
        return states.count(INLINE), states.count(ERROR)

    # ---- members ----

    def _takes_copies(self) -> None:
        """Make the copies for which there was no place, because one more worker takes copies."""
        self.moves.joined()
        self.replicas.look_at_all()

    def add_worker(self, view: WorkerView) -> None:
        """Use a worker that joined; a second worker at the same address changes nothing."""
        if view.address not in self.placement.workers:
            self.placement.add_worker(view)
            self.posting.joined(view)
            self._takes_copies()

    def remove_worker(
        self, view: WorkerView, reason: str = "left the cluster", reached: bool = True
    ) -> None:
        """Remove a worker that is gone; the parameters are those of `Departures.remove`."""
        self.departures.remove(view, reason, reached)

    def unsendable(self, view: WorkerView, message: Message, error: bytes) -> None:
        """Fail the tasks that need an unsendable message, see `Dispatch.unsendable`."""
        self.dispatch.unsendable(view, message, error)

    def broke(self, row: Row | None, error: Exception, where: str) -> None:
        """Contain an unexpected error of this core: only the row of the failed step ends.

        ``where`` names the step, for the log; ``row`` is None when the step concerns no row.
        """
        if row is not None and row.state < INLINE:
            failure = Failure("internal", row.key, f"{where}: {error!r}")
            self.lifecycle.fail(row, ERROR, failure)
        self.effects.broken.append((where, error))

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Take in a batch of a worker's answers, in the worker's order, at ``now`` microseconds."""
        self.results.receive(view, batch, now)

    # ---- time ----

    def schedule(self, now: float) -> None:
        """Give ready rows to workers that want more; ``now`` is in microseconds."""
        self.scheduling.schedule(now)
        # The numbers of this round's attempts get their time here, not one by one.
        attempts = self.lifecycle.numbers
        if attempts != self._marked:
            self._marked = attempts
            self.attempt_times.mark(attempts, now)

    def hurry(self, rows: Iterable[Row], now: float) -> None:
        """Push ready rows to the worker in this process, whose parked tasks wait for the rows."""
        self.scheduling.hurry(rows, now)

    def tick(self, now: float) -> bool:
        """Recall queued tasks for idle workers, and return whether to call again soon."""
        return self.scheduling.recall(now)

    # ---- one row ----

    def _place(self, row: Row) -> None:
        """Place a ready row: an alias gets the value of its source, any other row a worker."""
        if row.function is self.functions.identity:
            self.aliases.place(row)
        else:
            self.placement.add_ready(row)

    def _where(self, row: Row) -> str:
        """Return the owner and the locations of a row, as text for error messages."""
        views = (row.worker,) if row.state == PUSHED else row.locations
        at = ", ".join([view.address for view in views])
        return f"owned by {self.name}" + (f", at {at}" if at else ", not at any worker")
