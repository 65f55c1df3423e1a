"""What an owner decides: takes in what happens, and has its parts deal with it.

The runtime (or the virtual cluster) tells what happened: `submit`, `receive`,
`release`, `cancel`, `add_worker`, `remove_worker`, `tick`. The answer is in two
places: messages in each worker's ``outbox``, and all else in `rows.effects`. Every
method may be called twice, late, or for what is already gone.
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
    SOUGHT,
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
    """The rows of one owner, and what becomes of them.

    Each part below decides one thing, gets what it needs when it is made here, and is told of
    rows by `Lifecycle.listen` and of messages by a table of handlers. A part that needs one
    made after it gets a function that finds it.

    Parameters
    ----------
    lock : context manager
        Covers the counts, see `Table`.
    home : str, optional
        Address of the worker in this process.
    process : Process
        This one, as others know it.
    clock : callable, optional
        The time, for what is written into ``history``, and once a second for ``timeline``.
    trace_inline : bool
        How inline values were made is kept, too: not to make them again, but to tell.
    limits : Limits, optional
    functions : BuiltinFunctions
        What workers are asked to call on the owner's own account.

    Attributes
    ----------
    history : History
        What happened that was unusual.
    losses : dict of str to int
        What deaths of other processes cost this one, by each of `rows.failure_counts.LOSSES`.
    timeline : AttemptTimes
        When attempts were numbered.
    table : Table
        The rows, and what counts them.
    lifecycle : Lifecycle
        Takes rows from state to state.
    attempts : AttemptRecords
        What attempts of tasks left behind.
    placement : Placement
        Ready rows, and the worker that takes each.
    peers, posting : Peers, Posting
        Other processes, and the ways of what is said to them.
    membership : Membership
        Who is in the cluster.
    departures, suspensions : Departures, Suspensions
        Workers that are gone, and workers that do not answer.
    dispatch, aliases, infeasible, scheduling : Dispatch, Aliases, Infeasible, Scheduling
        How rows get to workers, or do without one.
    results : Results
        Takes in what workers answer.
    desired : Desired
        Rows that are kept until they end.
    checkpoints : Checkpoints
        What tasks keep for their next attempts.
    lineages : Lineages
        How stored values can be made again.
    copies, replicas, moves : Copies, Replicas, Moves
        Copies of stored values: how they are made, which are kept, and which leave a worker.
    borrowing, lending : Borrowing, Lending
        What this process borrows, and what others borrow of it.
    retention, reconstruction : Retention, Reconstruction
        Tasks that are kept for what they submitted, and what dead owners lost and is made again.
    delegations : Delegations
        Tasks whose value is to be another's.
    adoption, bequests : OwnershipTransfer, DetachedObjects
        Objects that change their owner: on their way from owners that leave, and held for the
        cluster.
    effects : OwnerEffects
        What the runtime has to do.
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
        self._marked = 0
        self.functions = functions
        self.limits = limits = limits or Limits()
        self.attempts = AttemptRecords()
        self.table = Table(lock, process)
        self.placement = Placement(home)
        self.lifecycle = Lifecycle(
            self.table,
            process[2],
            log=self.history.log,
            queue=self.placement.add_ready,
            place=self._place,
            why_not=lambda row: self.lineages.why_not(row),
            losses=self.losses,
            effects=self.effects,
            attempts=self.attempts,
        )
        self.counts = self.lifecycle.counts

        # Who is there.
        self.peers = Peers(
            process,
            is_gone=lambda incarnation: self.membership.is_gone(incarnation),
            process_gone=lambda incarnation: self.membership.process_gone(incarnation),
            unheard=lambda peer: self.posting.unheard(peer),
            effects=self.effects,
        )
        refused: dict[str, WorkerView] = {}
        self.refused: dict[str, str] = {}
        self.posting = Posting(self.peers, self.placement, refused, self.effects)
        self.membership = Membership(
            self.placement,
            self.peers,
            self.posting,
            refused=refused,
            reasons=self.refused,
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
            seek=lambda row: self.reconstruction.seek(row),
            limits=limits,
        )
        self.aliases = Aliases(self.lifecycle, self.placement, self.dispatch, self.broke)
        self.copies = Copies(self.lifecycle, self.placement, functions, self.submit)
        self.replicas = Replicas(self.lifecycle, self.copies)
        self.moves = Moves(self.lifecycle, self.placement, self.copies, self.replicas)
        self.infeasible = Infeasible(self.placement, self.lifecycle, functions, self.refused)
        self.scheduling = Scheduling(self.placement, self.dispatch, self.infeasible, self.broke)

        # What is kept for those who may need it.
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

        # What other processes own, or have of this one.
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

        # Who is told what becomes of rows, in this order.
        listen = self.lifecycle.listen
        listen(self.checkpoints, TRIED)
        listen(self.lending, HAS_BORROWERS)
        listen(self.borrowing, BORROWED)
        listen(self.lineages, TRACED | RETAINED)
        listen(self.desired, DESIRED)
        listen(self.copies, COPY)
        listen(self.replicas, REPLICATED)
        listen(self.retention, EXPORTED)
        listen(self.reconstruction, QUESTION | SOUGHT)
        listen(self.detached)
        listen(self.attempts, TRIED)

        # Who takes in what workers say.
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
        self.results.running[m.CHILD_SUBMITTED] = self.reconstruction.on_made
        self.results.late[m.CHECKPOINT] = self.checkpoints.on_checkpoint_late
        self.results.late[m.CHILD_SUBMITTED] = self.reconstruction.on_made_late
        self.results.of_no_task[m.ACCEPTING] = self.moves.on_accepting
        self.results.of_no_task[m.LEAVING] = self.moves.on_leaving
        self.results.of_no_task[m.POST] = self.peers.on_post

        # What other layers of the package use of the parts, without a call in between.
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
        """Of this process: a client's id, or a worker's address."""
        return self.lifecycle.name

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
        for view in row.locations:
            if view.leaving:
                self.moves.away(row, view)

    def expect(self, key: Key, options: Options) -> Row:
        """Add a row, with one handle, for a value that is about to be at workers; see `put`."""
        row = self.table.adopt(Row(key, None, None, (), 0, options))
        self.lifecycle.numbers += 1
        row.attempt = self.lifecycle.numbers
        return row

    def hold_for_cluster(self) -> None:
        """This process holds detached objects from now on, on behalf of the cluster."""
        self.detached.holds = True

    def missed(self, row: Row, addresses: Iterable[str]) -> None:
        """Of those said to have a stored value, these have not got it.

        Their source may have died before they had it: it is made again, if that can be.
        """
        if isinstance(row, Borrowed):
            self.borrowing.missed(row, addresses)
        elif row.state == STORED:
            gone = {holder for holder in row.locations if holder.address in addresses}
            if gone:
                self.lifecycle.drop_locations(row, gone, "does not have it")

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
        owned, borrowed = failed_for(rows)
        for row in borrowed:
            self.borrowing.retry(row)
        revive(self.lifecycle, owned)

    def close(self, detail: str) -> None:
        """The owner ends: so does every row, and no value is kept."""
        self.copies.closed = True
        self.peers.leave()
        for row in self.table.all():
            if row.state != FORGOTTEN:
                self.lifecycle.end(row, CANCELLED, Failure("closed", row.key, detail))

    def abandon(self, detail: str) -> None:
        """The cluster is gone: rows whose outcome is here keep it, all others end."""
        self.copies.closed = True
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
        """A worker is gone; ``reached`` is False when nothing sent to it can have arrived."""
        self.departures.remove(view, reason, reached)

    def unsendable(self, view: WorkerView, message: Message, error: bytes) -> None:
        """A message to a worker cannot be packed: what needs it fails, with a pickled error."""
        self.dispatch.unsendable(view, message, error)

    def broke(self, row: Row | None, error: Exception, where: str) -> None:
        """Something of this core failed while it dealt with a row: that ends, and no other."""
        if row is not None and row.state < INLINE:
            failure = Failure("internal", row.key, f"{where}: {error!r}")
            self.lifecycle.fail(row, ERROR, failure)
        self.effects.broken.append((where, error))

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Results of a worker, in the order in which it gave them."""
        self.results.receive(view, batch, now)

    # ---- time ----

    def schedule(self, now: float) -> None:
        """Give ready rows to workers that want more."""
        self.scheduling.schedule(now)
        attempts = self.lifecycle.numbers
        if attempts != self._marked:
            self._marked = attempts
            self.attempt_times.mark(attempts, now)

    def hurry(self, rows: Iterable[Row], now: float) -> None:
        """Have rows run at the worker in this process, whose parked tasks wait for them."""
        self.scheduling.hurry(rows, now)

    def tick(self, now: float) -> bool:
        """Recall queued work for idle workers; whether to be called again soon."""
        return self.scheduling.recall(now)

    # ---- one row ----

    def _place(self, row: Row) -> None:
        """A row has all that it needs: find a worker for it, or the value of another row."""
        if row.function is self.functions.identity:
            self.aliases.place(row)
        else:
            self.placement.add_ready(row)

    def _where(self, row: Row) -> str:
        """Who owns a row and where it is, for one who asks what became of it."""
        views = (row.worker,) if row.state == PUSHED else row.locations
        at = ", ".join([view.address for view in views])
        return f"owned by {self.name}" + (f", at {at}" if at else ", not at any worker")
