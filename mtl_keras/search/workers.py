"""Many workers of one search: KerasTuner's chief and clients, made to outlive kills.

The chief holds the oracle and trains nothing; workers ask it for trials over gRPC,
by KerasTuner's own protocol. A worker says every few seconds that it lives. One that
stops saying so loses its trial to another; its result, if it comes after all, counts
when it is the first. A chief that is gone is waited for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from mtl_keras.errors import InputError
from mtl_keras.search.keras_tuner_compat import (
    OracleClient,
    OracleServicer,
    StudyOracle,
    protos,
)

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 60.0  # after which a worker counts as dead
CHIEF_SECONDS = 600.0  # how long a worker waits for a chief
_FAREWELL_SECONDS = 15.0  # for telling all workers that the search has ended
_ID = "tuner-id"  # in the metadata of every call


class Chief:
    """Serves an oracle to workers until its search has ended.

    A worker without a call for `silence` seconds counts as dead, which `say` reports.
    """

    def __init__(
        self,
        oracle: StudyOracle,
        address: str,
        *,
        silence: float = SILENCE_SECONDS,
        say: Callable[[str], None] = print,
    ):
        self._servicer = OracleServicer(oracle)
        self._calls = _OneAtATime()
        self._oracle = oracle
        self._silence = silence
        self._say = say
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8),
            # Two chiefs on one port would each get some of the calls.
            options=[("grpc.so_reuseport", 0)],
            interceptors=[self._calls],
        )
        protos.get_service_grpc().add_OracleServicer_to_server(
            self._servicer, self._server
        )
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise InputError(
                f"The chief cannot listen on {address!r}. Is another one running, or "
                "the address not this machine's?"
            )

    def take_up(self) -> None:
        """Adopts the workers of an earlier chief, as if they had just reported."""
        for tuner_id, trial_id in self._oracle.left_running.items():
            self._oracle.take_up(tuner_id, trial_id)
            self._calls.seen[tuner_id] = time.monotonic()

    def start(self) -> None:
        """Starts to serve."""
        self._server.start()

    def ended(self) -> bool:
        """Returns whether the search has ended; takes back trials of silent workers."""
        now = time.monotonic()
        with self._calls.lock:
            silent = [
                tuner_id
                for tuner_id in self._oracle.ongoing_trials
                if now - self._calls.seen.get(tuner_id, now) > self._silence
            ]
            over = self._servicer.stop_triggered and not (
                self._oracle.ongoing_trials or self._oracle.waiting
            )
            for tuner_id in silent:
                trial = self._oracle.give_back(tuner_id)
                self._calls.seen.pop(tuner_id, None)
                self._say(f"{tuner_id} died; its trial {trial.trial_id} goes back")
        return over or self._oracle.stopped

    def stop(self) -> None:
        """Announces the end of the search to the workers for a while, then ends."""
        end = time.monotonic() + _FAREWELL_SECONDS
        while self._oracle.tuner_ids and time.monotonic() < end:
            time.sleep(0.1)
        self._server.stop(grace=1.0).wait()


class _OneAtATime(grpc.ServerInterceptor):
    """Notes who has called, and answers one call at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.seen: dict[str, float] = {}

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        caller = dict(details.invocation_metadata).get(_ID)

        def answer(request: Any, context: Any) -> Any:
            with self.lock:
                if caller is not None:
                    self.seen[caller] = time.monotonic()
                return handler.unary_unary(request, context)

        return handler and grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


class WorkerClient(OracleClient):
    """KerasTuner's client, which says that it lives and waits for a lost chief.

    It reads KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT.
    """

    def __init__(self, oracle: StudyOracle):
        super().__init__(oracle)
        address = ":".join(
            os.environ[f"KERASTUNER_ORACLE_{part}"] for part in ("IP", "PORT")
        )
        channel = grpc.insecure_channel(
            address, options=[("grpc.max_reconnect_backoff_ms", 1000)]
        )
        self.stub = protos.get_service_grpc().OracleStub(
            grpc.intercept_channel(channel, _Patience(self.tuner_id))
        )
        stub = protos.get_service_grpc().OracleStub(channel)
        threading.Thread(target=_beat, args=(stub, self.tuner_id), daemon=True).start()


class _Patience(grpc.UnaryUnaryClientInterceptor):
    """Signs every call, and repeats those that a dying chief left without answer.

    Safe: a chief gives a worker the trial that it has, and ends a trial once.
    """

    def __init__(self, tuner_id: str):
        self._metadata = [(_ID, tuner_id)]

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any):
        details = details._replace(metadata=self._metadata)
        while True:
            call = continuation(details, request)
            if call.code() is not grpc.StatusCode.UNAVAILABLE:
                return call
            time.sleep(0.5)


def _beat(stub: Any, tuner_id: str) -> None:
    """Calls the chief every few seconds; ends the process when there is none."""
    heard = time.monotonic()
    request = protos.get_service().GetBestTrialsRequest(num_trials=0)
    while True:
        try:
            stub.GetBestTrials(
                request, timeout=BEAT_SECONDS, metadata=[(_ID, tuner_id)]
            )
            heard = time.monotonic()
        except grpc.RpcError:
            if time.monotonic() - heard > CHIEF_SECONDS:
                os.write(2, b"The chief has not answered for ten minutes.\n")
                # From a thread that is not the main one; its trial ends with it.
                os._exit(2)
        time.sleep(BEAT_SECONDS)
