"""The edge as a router in Python sees it: run.sh runs this against a mooring of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import router
import router_pb2

MOORING = os.environ["MOORING"]
SERVICE = "mooring.router.v1.Router"
LISTENERS = ("DEVICE_TLS", "DEVICE_PLAIN", "ROUTER_LISTEN", "ROUTER_GRPC", "ADMIN_LISTEN")
# Nothing of the developer's own edge.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MOORING")}
# What is waited for comes at once or never.
NEVER_SECONDS = 60


def wait_for(look, what):
    for _ in range(NEVER_SECONDS * 100):
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise TimeoutError(what)


class Edge:
    """An edge of its own, on ports that the system chooses."""

    def __init__(self):
        self._place = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self._place.name)
        settings = {f"MOORING_{name}": "127.0.0.1:0" for name in LISTENERS}
        self.log = open(self.dir / "log", "w+")
        self.process = subprocess.Popen(
            [MOORING, "serve", "--dev", "--data-dir", self.dir],
            env=ENVIRONMENT | settings | {"MOORING_LEAVE_DRAIN_LEAD_MS": "0", "MOORING_LEAVE_WINDOW_MS": "100"},
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )
        wait_for(self._serves, "the edge does not serve")
        self.address = f"127.0.0.1:{json.loads((self.dir / 'ports.json').read_text())['grpc']}"

    def _serves(self):
        if self.process.poll() is not None:
            raise RuntimeError((self.dir / "log").read_text())
        return (self.dir / "ports.json").exists()

    def pem(self, name):
        return str(self.dir / "dev" / name)

    def channel(self, certificate="router"):
        return router.connect(self.address, self.pem("ca.pem"), self.pem(f"{certificate}.pem"), self.pem(f"{certificate}.key"))

    def device(self, name):
        """A device that has connected."""
        device = subprocess.Popen(
            [MOORING, "device", "--dev", self.dir, "--device", name, "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = device.stderr.readline()
        assert "connected" in line, line
        return device

    def leave(self):
        self.process.send_signal(signal.SIGTERM)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
        self._place.cleanup()


def end(device):
    device.terminate()
    device.wait()
    device.stderr.close()


class RouterTest(unittest.TestCase):
    def setUp(self):
        signal.alarm(2 * NEVER_SECONDS)
        self.edge = Edge()
        self.addCleanup(self.edge.close)

    def channel(self, certificate="router"):
        channel = self.edge.channel(certificate)
        self.addCleanup(channel.close)
        return channel

    def test_a_batch_is_pushed_and_followed_to_every_end(self):
        device = self.edge.device("phone-1")
        link = router.Link(self.channel())
        sent = router.batch("demo", ["phone-1", "never-seen"])
        pushed = router.push(link, sent)
        self.assertEqual(pushed["accepted"], 1)
        self.assertEqual(pushed["refused"], {"DEVICE_UNKNOWN": [1]})
        self.assertEqual(pushed["ends"], {"phone-1": "ARRIVED"})

        # The same batch again has the same answer.
        del link.answers[sent.batch_id]
        again = link.deliver(sent)
        self.assertTrue(again.repeated)
        self.assertEqual(again.accepted, 1)

        # Who is away gets nothing after its time, and that is reported.
        end(device)
        self.wait_until_away(link, "phone-1")
        late = router.push(link, router.batch("demo", ["phone-1"], retention=1))
        self.assertEqual(late["ends"], {"phone-1": "EXPIRED"})

        state = self.ask(link, message_id=sent.message_id).message
        failed = sum(one.count for one in state.failed)
        self.assertEqual((state.targets, state.accepted, state.arrived), (2, 1, 1))
        self.assertEqual(state.accepted, state.arrived + failed + state.pending)

        # What was acknowledged does not come again.
        link.say_no_more()
        while link.step():
            pass
        self.assertEqual(link.call.code(), grpc.StatusCode.OK)
        second = router.Link(self.channel())
        self.ask(second, message_id=sent.message_id)
        self.assertEqual(second.ends, {})
        second.say_no_more()

    def ask(self, link, **about):
        link.answer = None
        link.say(query=router_pb2.Query(request_id=1, app_key="demo", **about))
        link.until(lambda: link.answer)
        return link.answer

    def wait_until_away(self, link, device):
        devices = router_pb2.DeviceIds(ids=[device])
        away = lambda: not self.ask(link, devices=devices).devices.devices[0].connected
        wait_for(away, "the device is still connected")

    def test_the_script_prints_what_became_of_a_batch(self):
        device = self.edge.device("phone-1")
        self.addCleanup(end, device)
        files = {"ca": "ca.pem", "certificate": "router.pem", "key": "router.key"}
        flags = [f"--{flag}={self.edge.pem(name)}" for flag, name in files.items()]
        script = [sys.executable, router.__file__, f"--address={self.edge.address}", *flags]
        script += ["--app=demo", "--device=phone-1", "--device=never-seen"]
        said = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
        self.assertEqual((said["accepted"], said["ends"]), (1, {"phone-1": "ARRIVED"}))

    def test_a_rejected_batch_says_why(self):
        link = router.Link(self.channel())
        pushed = router.push(link, router.batch("nobody", ["phone-1"]))
        self.assertEqual((pushed["rejected"], pushed["field"]), ("REJECT_CODE_UNKNOWN_APP", "app_key"))
        link.say_no_more()

    def test_who_is_not_in_the_configuration_gets_an_error_and_a_status(self):
        make = [MOORING, "keys", "router-certificate", "--name", "stranger", "--out-dir", self.edge.dir / "dev"]
        make += ["--ca", self.edge.pem("ca.pem"), "--ca-key", self.edge.pem("ca.key")]
        subprocess.run(make, check=True, capture_output=True)
        link = router.Link(self.channel("stranger"))
        with self.assertRaises(grpc.RpcError) as raised:
            while link.step():
                pass
        self.assertEqual(link.error.code, router_pb2.LINK_ERROR_CODE_UNAUTHORIZED)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.ABORTED)
        self.assertEqual(raised.exception.details(), link.error.text)

    def test_who_has_no_certificate_gets_nowhere(self):
        with router.connect(self.edge.address, self.edge.pem("ca.pem")) as channel:
            link = router.Link(channel)
            with self.assertRaises(grpc.RpcError) as raised:
                link.step()
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertIsNone(link.opened)

    def test_an_edge_that_leaves_says_so_and_ends_ok(self):
        link = router.Link(self.channel())
        link.until(lambda: link.opened)
        self.edge.leave()
        while link.step():
            pass
        self.assertTrue(link.goes_away)
        self.assertEqual(link.call.code(), grpc.StatusCode.OK)
        self.assertEqual(self.edge.process.wait(NEVER_SECONDS), 0)

    def test_reflection_is_enough_to_speak(self):
        """No generated module: services and messages as the edge describes them."""
        channel = self.channel()
        known = ProtoReflectionDescriptorDatabase(channel)
        self.assertLessEqual({SERVICE, "grpc.health.v1.Health"}, set(known.get_services()))
        link = DescriptorPool(known).FindServiceByName(SERVICE).methods_by_name["Link"]
        said = message_factory.GetMessageClass(link.input_type)()
        said.open.version = 1
        call = channel.stream_stream(
            f"/{SERVICE}/Link",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(link.output_type).FromString,
        )
        heard = list(call(iter([said])))
        self.assertEqual([message.WhichOneof("frame") for message in heard], ["opened"])

    def test_health(self):
        health = health_pb2_grpc.HealthStub(self.channel())
        for service in ("", SERVICE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    unittest.main(verbosity=2)
