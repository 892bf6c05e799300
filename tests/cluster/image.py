#!/usr/bin/env python3
"""image.py NAME OUT.tar ENTRYPOINT FILE=/path/in/image ...: an OCI archive of one layer, for what the tests run beside the product."""

import hashlib
import io
import json
import sys
import tarfile


def add(archive, name, data, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(data))


def layer_of(files):
    buffer, folders = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for source, path in (file.split("=", 1) for file in files):
            parts = path.strip("/").split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)
            with open(source, "rb") as content:
                add(archive, "/".join(parts), content.read(), 0o755)
    return buffer.getvalue()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def described(kind, data):
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(data), "size": len(data)}


def main(name, out, entrypoint, *files):
    layer = layer_of(files)
    config = json.dumps({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entrypoint.split(), "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", config), "layers": [described("layer.v1.tar", layer)],
    }).encode()
    entry = described("manifest.v1+json", manifest)
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.split(":")[-1]}
    with tarfile.open(out, "w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for blob in (config, manifest, layer):
            add(archive, "blobs/sha256/" + digest(blob).split(":")[1], blob)


main(*sys.argv[1:])
