"""What Helm and Kubernetes say of the chart.

Reads JSON requests, one a line: `chart` (a folder), `values`, and `cluster`: the objects that the cluster is to hold,
or null for a rendering without a cluster. Answers each with a line:

- `refused`: why Helm would not deploy it, or
- `objects`: what it would deploy; `notes`; `faults`: what Helm's linter, or Kubernetes' schemas, strictly read, have
  against them; `unknown`: kinds that Kubernetes has no schema for.
"""

import functools
import http.server
import json
import sys
import threading

import helm_python as helm
import kubernetes_validate
import yaml

# It would read its schemas, 2 MB a version, again for each object.
kubernetes_validate.utils.schema_contents = functools.lru_cache(kubernetes_validate.utils.schema_contents)

# The oldest that Chart.yaml allows, and the newest there are schemas for.
VERSIONS = ["1.30", "1.37"]
WARNING = 2


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, as Kubernetes does."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a key twice among {keys}")
        return super().construct_mapping(node, deep)


class Cluster(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes' API as Helm's `lookup` of a Secret asks for; the client is Helm's own."""

    objects = {}
    SECRETS = {"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get"]}

    def do_GET(self):
        path = self.path.split("?")[0]
        found = {
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [self.SECRETS]},
            **self.objects,
        }.get(path)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def render(chart, values, cluster):
    names = {"name": "release", "namespace": "space"}
    if cluster is None:
        return chart.render(values, **names)
    Cluster.objects = {
        f"/api/v1/namespaces/{it['metadata']['namespace']}/secrets/{it['metadata']['name']}": it for it in cluster
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with helm.Config(kube_apiserver=f"http://127.0.0.1:{server.server_port}", namespace="space") as config:
            return config.render(chart, values, **names)
    finally:
        server.shutdown()
        server.server_close()


def answer(request):
    with helm.Chart.load(request["chart"]) as chart:
        try:
            rendered = render(chart, request["values"], request["cluster"])
        except (helm.HelmValuesError, helm.HelmRenderError) as error:
            return {"refused": str(error)}

    report = helm.lint(request["chart"], request["values"], strict=True)
    faults = report["errors"] + [it["error"] for it in report["messages"] if it["severity"] >= WARNING]
    notes, objects, unknown = "", [], set()
    for path, text in rendered.items():
        if path.endswith("NOTES.txt"):
            notes = text
            continue
        for it in filter(None, yaml.load_all(text, Loader=StrictLoader)):
            objects.append(it)
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(it, version, strict=True)
                except kubernetes_validate.SchemaNotFoundError:
                    unknown.add(it["kind"])
                except kubernetes_validate.ValidationError as error:
                    where = ".".join(map(str, error.path))
                    faults.append(f"{path}, Kubernetes {version}: {where}: {error.message}")
    return {"objects": objects, "notes": notes, "faults": faults, "unknown": sorted(unknown)}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
