"""Reads what Weights & Biases writes offline: records in LevelDB's log format, behind a header of seven bytes."""

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768


def records(path):
    data, at, parts, found = path.read_bytes(), 7, [], []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits into the end of a block
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if not kind:
            break
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(b"".join(parts)))
            parts = []
    return found


class Offline:
    def __init__(self, path):
        self.records = records(path)
        self.run = next(record.run for record in self.records if record.WhichOneof("record_type") == "run")
        self.exit = [record.exit.exit_code for record in self.records if record.WhichOneof("record_type") == "exit"]

    @property
    def history(self):
        """The logged points, in their order, without W&B's own keys."""
        logged = (record.history for record in self.records if record.WhichOneof("record_type") == "history")
        points = [
            {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item} for h in logged
        ]
        return [{key: value for key, value in point.items() if not key.startswith("_")} for point in points]

    @property
    def axes(self):
        """Metric -> the metric on its x axis."""
        defined = (record.metric for record in self.records if record.WhichOneof("record_type") == "metric")
        return {metric.name or metric.glob_name: metric.step_metric for metric in defined}

    @property
    def config(self):
        updates = [self.run.config, *(r.config for r in self.records if r.WhichOneof("record_type") == "config")]
        return {item.key or item.nested_key[0]: json.loads(item.value_json) for each in updates for item in each.update}

    @property
    def artifacts(self):
        return [r.artifact for r in self.records if r.WhichOneof("record_type") == "artifact"] + [
            r.request.log_artifact.artifact
            for r in self.records
            if r.WhichOneof("record_type") == "request" and r.request.HasField("log_artifact")
        ]
