#!/usr/bin/env python3
"""A router in another language, from proto/router.proto alone: it pushes a batch and follows it to the end of every target.

    router.py --address 127.0.0.1:7401 --ca ca.pem --certificate router.pem --key router.key --app demo --device d-1 --device d-2

Prints one JSON object: what was accepted, what was refused and why, how each accepted target ended. Needs grpcio and the
modules that grpc_tools.protoc makes of proto/ (see run.sh).
"""

import argparse
import json
import pathlib
import queue
import random
import signal
import sys
import time

import grpc

import device_pb2
import router_pb2
import router_pb2_grpc

MESSAGE_BYTES = 16 * 1024 * 1024
FRAMES_WAITING = 64


def connect(address, ca, certificate=None, key=None):
    """A channel; without a certificate the edge refuses it."""
    read = lambda path: pathlib.Path(path).read_bytes() if path else None
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(certificate))
    return grpc.secure_channel(address, credentials, [("grpc.max_receive_message_length", MESSAGE_BYTES)])


class Link:
    """One call of Router.Link."""

    def __init__(self, channel, streams=("main",)):
        self._said = queue.Queue(FRAMES_WAITING)
        self.call = router_pb2_grpc.RouterStub(channel).Link(iter(self._said.get, None))
        self.answers = {}  # batch id: BatchAccepted or BatchRejected
        self.ends = {}  # (batch id, ordinal): "ARRIVED", or why it failed
        self.events = 0
        self.goes_away = False
        self.error = None
        self.opened = None
        self.answer = None
        opened = [router_pb2.OpenStream(stream=stream) for stream in streams]
        self.say(open=router_pb2.Open(version=1, name="python", streams=opened))

    def say(self, **frame):
        self._said.put(router_pb2.FromRouter(**frame))

    def say_no_more(self):
        self._said.put(None)

    def step(self):
        """Takes one frame; False once the call has ended with status OK, or grpc.RpcError."""
        message = next(self.call, None)
        if message is None:
            return False
        match message.WhichOneof("frame"):
            case "opened":
                self.opened = message.opened
            case "accepted":
                self.answers[message.accepted.batch_id] = message.accepted
            case "rejected":
                self.answers[message.rejected.batch_id] = message.rejected
            case "stream":
                self._follow(message.stream)
            case "answer":
                self.answer = message.answer
            case "go_away":
                self.goes_away = True
            case "error":
                self.error = message.error
            # Frames of newer edges are skipped.
        return True

    def until(self, done):
        """Takes frames until this holds."""
        while not done():
            if not self.step():
                raise EOFError("the edge closed the link")

    def deliver(self, batch):
        """The answer to a batch."""
        self.say(deliver=batch)
        self.until(lambda: batch.batch_id in self.answers)
        return self.answers[batch.batch_id]

    def _follow(self, batch):
        for event in batch.events:
            self.events += 1
            match event.WhichOneof("event"):
                case "receipt":
                    self._end_of(event.receipt)
                case "mass_outcome":
                    mass = event.mass_outcome
                    for bit in range(8 * len(mass.ordinals)):
                        if mass.ordinals[bit // 8] >> (bit % 8) & 1:
                            self.ends[mass.batch_id, mass.first_ordinal + bit] = reason(mass.reason)
        # A real router has stored the events durably by now.
        self.say(stream_ack=router_pb2.StreamAck(stream=batch.stream, cursor=batch.cursor))

    def _end_of(self, receipt):
        if receipt.outcome == router_pb2.OUTCOME_ARRIVED:
            self.ends[receipt.batch_id, receipt.ordinal] = "ARRIVED"
        elif receipt.outcome == router_pb2.OUTCOME_FAILED:
            self.ends[receipt.batch_id, receipt.ordinal] = reason(receipt.reason)


def reason(code):
    return router_pb2.FailReason.Name(code).removeprefix("FAIL_REASON_")


def batch(app, devices, title="Hello", retention=None):
    """A message to these devices, as a batch of its own."""
    message_id = random.getrandbits(63) | 1
    return router_pb2.DeliverBatch(
        batch_id=f"python-{message_id}",
        app_key=app,
        message_id=message_id,
        body=device_pb2.Push(kind=device_pb2.KIND_NOTIFICATION, title=title, body="from Python"),
        targets=[router_pb2.Target(device_id=device) for device in devices],
        created_at=int(time.time() * 1000),
        retention_seconds=retention,
    )


def push(link, sent):
    """Pushes a batch and follows it: what the JSON says."""
    answer = link.deliver(sent)
    if isinstance(answer, router_pb2.BatchRejected):
        return {"rejected": router_pb2.RejectCode.Name(answer.code), "field": answer.field, "text": answer.text}
    names = router_pb2.RefuseReason.Name
    refused = {names(one.reason).removeprefix("REFUSE_REASON_"): list(one.ordinals) for one in answer.refused}
    without = {ordinal for ordinals in refused.values() for ordinal in ordinals}
    accepted = [ordinal for ordinal in range(len(sent.targets)) if ordinal not in without]
    link.until(lambda: all((sent.batch_id, ordinal) in link.ends for ordinal in accepted))
    ends = {sent.targets[ordinal].device_id: link.ends[sent.batch_id, ordinal] for ordinal in accepted}
    return {"batch": sent.batch_id, "accepted": answer.accepted, "refused": refused, "ends": ends}


def main():
    parser = argparse.ArgumentParser(description="Pushes a message through a Mooring edge over gRPC and follows it.")
    for flag in ("address", "ca", "certificate", "key", "app"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--device", action="append", required=True, help="a device id; several times for several")
    parser.add_argument("--title", default="Hello")
    parser.add_argument("--retention", type=int, help="seconds that the edge keeps it for who is not connected")
    parser.add_argument("--timeout", type=int, default=60, help="seconds for all of it")
    args = parser.parse_args()
    signal.alarm(args.timeout)
    with connect(args.address, args.ca, args.certificate, args.key) as channel:
        link = Link(channel)
        print(json.dumps(push(link, batch(args.app, args.device, args.title, args.retention))))
        link.say_no_more()
        while link.step():
            pass


if __name__ == "__main__":
    try:
        main()
    except (grpc.RpcError, EOFError) as error:
        sys.exit(f"error: {error}")
