#!/usr/bin/env python3
"""How long a prompt takes computed, and how long read from the disk after a kill.

    restore.py --bin target/release/jetforge --model FILE.gguf [--kv-type q8_0] [--mb-s 90]

In turn: a service on an empty directory computes a prompt and keeps it; it is killed; the files leave
the page cache; another service reads the prompt, limited to --mb-s. Both times are the service's own
(`timings.prompt_ms`, from admission to the first token); the texts must be equal.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request


def get(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read().decode()


class Service:
    def __init__(self, args, directory, home):
        command = [args.bin, "serve", "--port", "0", "-m", args.model, "-np", "1", "-c", "4096",
                   "--metrics", "--disk-cache-dir", directory, "--log-level", "error",
                   "--set", f"prefix_cache.read_limit_mb_s={args.mb_s}"]
        if args.threads:
            command += ["-t", str(args.threads)]
        if args.kv_type:
            command += ["--kv-type", args.kv_type]
        env = {"HOME": home}
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
        self.url = self.child.stdout.readline().split()[-1]
        while True:
            try:
                get(self.url + "/health")
                return
            except OSError:
                time.sleep(0.1)

    def metric(self, name):
        return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", get(self.url + "/metrics"), re.M)[1])

    def ask(self, prompt):
        body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "ignore_eos": True,
                "return_tokens": True}
        answer = json.loads(get(self.url + "/completion", body))
        return answer["content"], answer["timings"]

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


def out_of_page_cache(directory):
    os.sync()
    for root, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def once(args, home, prompt):
    directory = tempfile.mkdtemp(dir=home)
    service = Service(args, directory, home)
    # Threads and pages are warm.
    service.ask([1 + i % 100 for i in range(100)])
    # The model's file is being digested at the first start.
    time.sleep(args.settle)
    text, computed = service.ask(prompt)
    n_page = (len(prompt) - 1) // 32
    while service.metric("jetforge_disk_cache_pages") < n_page:
        time.sleep(0.1)
    n_bytes = service.metric("jetforge_disk_cache_bytes")
    service.kill()
    out_of_page_cache(directory)
    service = Service(args, directory, home)
    service.ask([1 + i % 100 for i in range(100)])
    again, restored = service.ask(prompt)
    service.kill()
    shutil.rmtree(directory)
    assert text == again, (text, again)
    assert restored["cache_n"] >= len(prompt) - 1 - 7, restored
    return computed["prompt_ms"] / 1e3, restored["prompt_ms"] / 1e3, n_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="target/release/jetforge")
    parser.add_argument("--model", required=True)
    parser.add_argument("--kv-type")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--mb-s", type=int, default=90)
    parser.add_argument("--tokens", type=int, default=1025)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--settle", type=float, default=4)
    args = parser.parse_args()
    rng = random.Random(5)
    prompt = [rng.randrange(300, 20000) for _ in range(args.tokens)]
    home = tempfile.mkdtemp(dir=os.environ.get("TMPDIR", "/var/tmp"))
    rows = [once(args, home, prompt) for _ in range(args.repeat)]
    shutil.rmtree(home)
    computed, restored = (statistics.median(row[i] for row in rows) for i in (0, 1))
    spread = [f"{min(r[i] for r in rows):.3f}-{max(r[i] for r in rows):.3f}" for i in (0, 1)]
    print(json.dumps({
        "model": os.path.basename(args.model), "kv_type": args.kv_type or "f16",
        "tokens": args.tokens, "mb_s": args.mb_s, "bytes": rows[0][2],
        "computed_s": round(computed, 3), "computed_range": spread[0],
        "restored_s": round(restored, 3), "restored_range": spread[1],
        "ratio": round(computed / restored, 1),
        "computed_tok_s": round((args.tokens - 1) / computed),
        "restored_tok_s": round((args.tokens - 1) / restored),
    }))


if __name__ == "__main__":
    main()
