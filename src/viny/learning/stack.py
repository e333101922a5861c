"""The training loop of a stack: runs of equal shapes in one process, each with its own draws, checkpoints and end."""

from __future__ import annotations

import functools
import gc
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from viny.learning.engine import Engine, Images, UnsoundError
from viny.learning.machine import Machine
from viny.learning.run import LOOK, Run, Step
from viny.learning.settings import ModelSettings
from viny.learning.train import step_by_step
from viny.runtime.errors import TrainingError
from viny.runtime.signals import Stopped

POLL = 1.0  # seconds between looks at who waits and who is still there
ROOM = 0.6  # share of a GPU's free memory that a stack's activations may take


class SharedClock:
    """Seconds of the machine for each run of a stack: those of the clock on the wall, divided by the runs."""

    def __init__(self) -> None:
        self._runs, self._told, self._at = 1, 0.0, time.monotonic()

    def __call__(self) -> float:
        return self._told + (time.monotonic() - self._at) / self._runs

    def share(self, runs: int) -> None:
        """So many runs share the machine from now on."""
        self._told, self._at, self._runs = self(), time.monotonic(), max(1, runs)


class Guest(Protocol):
    """A run in a stack, and whose it is."""

    run: Run

    def lines(self) -> AbstractContextManager[object]:
        """What is printed meanwhile goes into the run's own log."""

    def here(self) -> bool:
        """Whether anybody still wants the run; if not, it is dropped without a word."""

    def stop_signal(self) -> int:
        """Number of the stop signal that arrived for the run; 0 for none."""

    def ended(self, error: BaseException | None) -> None:
        """The run is trained, or has failed or stopped: `error` says how. Never raises."""

    def sent_away(self, why: str) -> None:
        """The run goes on elsewhere, from its checkpoint. Never raises."""


class Host(Protocol):
    """Who fills a stack."""

    def guests(self, room: int, clock: SharedClock) -> Sequence[Guest]:
        """Up to `room` further runs that fit into the stack."""

    def leaving(self, left: float) -> bool:
        """Whether the stack is to end now, though its runs would take `left` seconds more."""


def activation_bytes(model: ModelSettings, precision: str) -> int:
    """Bytes that a training step keeps of an image between forward and backward pass, roughly."""
    inner, width = model.heads * model.head_dim, 2 if precision == "bfloat16" else 4
    block = model.patches * (4 * model.dim + 4 * inner + 2 * model.mlp_dim)
    return 2 * width * model.depth * block + 40 * model.image_size**2


def room_for(model: ModelSettings, batch: int, machine: Machine, most: int) -> int:
    """How many runs a stack may have: at most `most`, and no more than the GPU's free memory holds."""
    if machine.device.type != "cuda":
        return most
    free = ROOM * torch.cuda.mem_get_info(machine.device)[0]
    return max(1, min(most, int(free / (batch * activation_bytes(model, machine.precision)))))


def train_together(host: Host, machine: Machine, most: int) -> None:
    """Train the runs that a host brings, until there are none. What fails a run ends it alone.

    Args:
        host: brings the runs; their objectives are on the machine's device.
        machine: device and precision.
        most: runs at once.
    """
    _Stack(host, machine, most).train()


def train_runs(runs: Sequence[Run], machine: Machine) -> None:
    """Train runs of one's own together, or one by itself.

    Args:
        runs: their objectives are on the machine's device; `run.stop` stops one.
        machine: device and precision.

    Raises:
        TrainingError: the loss or the weights of one became NaN or infinite; the others are trained.
        Stopped: a signal arrived for one.
    """
    guests = [_Own(run) for run in runs]
    train_together(_House(guests), machine, len(runs))
    for guest in guests:
        if guest.error is not None:
            raise guest.error


class _House:
    """A host whose guests are all there from the beginning."""

    def __init__(self, guests: Sequence[_Own]) -> None:
        self._waiting = list(guests)

    def guests(self, room: int, clock: SharedClock) -> list[_Own]:
        found, self._waiting = self._waiting[:room], self._waiting[room:]
        for guest in found:
            guest.run.use(clock)
        return found

    def leaving(self, left: float) -> bool:
        return False


class _Own:
    """A run of this process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.error: BaseException | None = None

    def lines(self) -> AbstractContextManager[object]:
        return nullcontext()

    def here(self) -> bool:
        return True

    def stop_signal(self) -> int:
        return self.run.signal

    def ended(self, error: BaseException | None) -> None:
        self.error = error

    def sent_away(self, why: str) -> None:
        self.error = RuntimeError(f"{self.run.stage}: not trained; {why or 'no memory for so many runs at once'}")


class _Stack:
    def __init__(self, host: Host, machine: Machine, most: int) -> None:
        self.host, self.machine, self.most = host, machine, most
        self.clock = SharedClock()
        self.guests: list[Guest] = []
        self.reports: dict[int, ExitStack] = {}
        self.images: Images | None = None  # of the last engine

    def train(self) -> None:
        newcomers = self._newcomers()
        try:
            while self.guests or newcomers:
                self.guests += newcomers
                engine = self._form()
                newcomers = [] if engine is None else self._work(engine)
                engine = None
        finally:
            for report in self.reports.values():
                report.close()

    # Coming and going

    def _newcomers(self) -> list[Guest]:
        """Further runs; those that have nothing left to do are done with."""
        found: list[Guest] = []
        came = self.host.guests(self.most - len(self.guests), self.clock)
        self.clock.share(len(self.guests) + len(came))
        for guest in came:
            run = guest.run
            with guest.lines():
                run.objective.train()
                self.reports[id(run)] = ExitStack()
                self.reports[id(run)].enter_context(run.report)
                run.end_epoch()
                run.measure()
            if run.finished:
                self._end(guest, None)
            else:
                found.append(guest)
        return found

    def _end(self, guest: Guest, error: BaseException | None) -> None:
        with guest.lines():
            report = self.reports.pop(id(guest.run))
            report.__exit__(type(error) if error else None, error, None)
        if guest in self.guests:
            self.guests.remove(guest)
            self.clock.share(len(self.guests))
        guest.ended(error)

    def _send_away(self, guest: Guest, why: str) -> None:
        self.reports.pop(id(guest.run)).close()
        self.guests.remove(guest)
        self.clock.share(len(self.guests))
        guest.sent_away(why)

    def _forget(self) -> None:
        """Free what an engine held, before there is another."""
        for guest in self.guests:
            guest.run.keep_weights()
        if self.machine.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _form(self) -> Engine | None:
        """An engine for all runs, or for as many as fit; None where a run had to be trained without one."""
        while self.guests:
            if self.images is not None and not all(self.images.hold(guest.run.batches) for guest in self.guests):
                self.images = None  # before others are read
            self._forget()
            self.clock.share(len(self.guests))
            try:
                engine = Engine([guest.run for guest in self.guests], self.machine, images=self.images)
                self.images = engine.images
                engine.start()
            except Exception as error:
                # Nothing is lost: the runs have their weights.
                engine = self.images = None
                if len(self.guests) > 1:
                    self._make_room(error)
                    continue
                if isinstance(error, UnsoundError):
                    self._without_engine(self.guests[0], error)
                else:
                    self._end(self.guests[0], error)
                return None
            else:
                for guest in self.guests:
                    guest.run.sound = functools.partial(engine.sound, guest.run)
                return engine
        return None

    def _make_room(self, error: Exception) -> None:
        """Let half of the runs go, or all but the first if they cannot be trained together."""
        full = isinstance(error, torch.OutOfMemoryError)
        said = "the GPU's memory is full" if full else f"{type(error).__name__}: {error}"
        self.most = len(self.guests) // 2 if full else 1
        print(f"{len(self.guests)} runs at once: {said}; {self.most} at once from here", flush=True)
        for guest in self.guests[self.most :]:
            if self._keep(guest):
                self._send_away(guest, "" if full else said)

    def _without_engine(self, guest: Guest, error: UnsoundError) -> None:

        def asked() -> int:
            wanted = guest.here() and not self.host.leaving(guest.run.report.left)
            return guest.stop_signal() or (0 if wanted else signal.SIGTERM)

        found: BaseException | None = None
        with guest.lines():
            print(f"the stacked engine not used, step by step: {error}", flush=True)
            self.host.guests(0, self.clock)  # nobody else has a place here
            try:
                step_by_step(guest.run, self.machine, asked)
            except (TrainingError, Stopped) as stopped:
                found = stopped
        if isinstance(found, Stopped) and not guest.stop_signal():
            self._send_away(guest, "")
        else:
            self._end(guest, found)

    # Between the steps

    def _work(self, engine: Engine) -> list[Guest]:
        """Train until everybody has ended, or the stack should have another size; returns those without a place."""
        waiting: list[Guest] = []
        polled = checked = time.monotonic()
        while self.guests:
            engine.queue()
            ended = self._take_in(engine, pending=1) or any(guest.run.unmeasured for guest in self.guests)
            now = time.monotonic()
            if not ended and now - polled < POLL:
                continue
            polled = now
            waiting += self._newcomers()  # made ready while the device works
            if not (ended or waiting or now - checked > LOOK or self._is_asked()):
                continue
            self._take_in(engine, pending=0)  # now the weights are those of the last step that was noted
            checked = now
            engine.look()
            for guest in list(self.guests):
                self._look_after(engine, guest)
            left = max((guest.run.report.left for guest in self.guests), default=0.0)
            if (self.guests or waiting) and self.host.leaving(left):
                for guest in list(self.guests):
                    if guest.stop_signal():  # since it was looked after
                        self._look_after(engine, guest)
                    elif self._keep(guest, engine):
                        self._send_away(guest, "")
                for guest in waiting:
                    self.guests.append(guest)
                    self._send_away(guest, "")
                return []
            waiting = [guest for guest in waiting if not self._seat(engine, guest)]
            if waiting or len(self.guests) <= len(engine.slots) // 2:
                for guest in list(self.guests):
                    self._keep(guest, engine)  # making the next engine may take a minute
                return waiting
        return waiting

    def _is_asked(self) -> bool:
        """Whether a run is to stop, to be saved or to be dropped, or the stack is to end."""
        asked = any(g.stop_signal() or g.run.to_be_saved or not g.here() for g in self.guests)
        return asked or self.host.leaving(max(guest.run.report.left for guest in self.guests))

    def _take_in(self, engine: Engine, pending: int) -> bool:
        """Note the losses of queued steps until `pending` batches of steps are left; returns whether a run ended."""
        ended = False
        while len(engine.pending) > pending or (engine.pending and not engine.busy):
            taken: dict[int, list[tuple[Step, Tensor]]] = {}
            for run, step, loss in engine.collect():
                taken.setdefault(id(run), []).append((step, loss))
            for guest in list(self.guests):  # not those that ended meanwhile
                run = guest.run
                try:
                    with guest.lines():
                        run.took_together(taken.get(id(run), []))
                except TrainingError as error:
                    engine.dismiss(run)
                    self._end(guest, error)
                    ended = True
                ended = ended or run.finished
        return ended

    def _look_after(self, engine: Engine, guest: Guest) -> None:
        """Do what is due for a run; the engine is idle."""
        run = guest.run
        if not guest.here():
            engine.dismiss(run)
            self._send_away(guest, "")
            return
        run.stop(guest.stop_signal())
        error: BaseException | None = None
        try:
            with guest.lines():
                # Asked once: what becomes due later would be saved with the weights of an earlier step.
                save = run.to_be_saved
                if run.finished or save or run.unmeasured:
                    run.finite()
                    engine.give_back(run)
                    run.measure()
                if not run.finished:
                    run.look(save)
        except (TrainingError, Stopped) as found:
            error = found
        if run.finished or error is not None:
            engine.dismiss(run)
            self._end(guest, error)

    def _keep(self, guest: Guest, engine: Engine | None = None) -> bool:
        """Give a run its weights back, if an engine has them, and save it; returns whether it is sound."""
        run = guest.run
        try:
            with guest.lines():
                run.finite()
                if engine is not None:
                    engine.give_back(run)
                if run.checkpoints is not None and guest.here():
                    run.save()
        except TrainingError as error:
            self._end(guest, error)
            return False
        return True

    def _seat(self, engine: Engine, guest: Guest) -> bool:
        """Give a newcomer a free place, if there is one for it."""
        if not engine.seat(guest.run):
            return False
        guest.run.sound = functools.partial(engine.sound, guest.run)
        self.guests.append(guest)
        self.clock.share(len(self.guests))
        return True
