"""A server on this machine that does what servers do: ranges, cuts, errors, other files than before."""

import http.server
import threading


class Server:
    """Serves `files` by path; `cuts` says after how many bytes the next answers end, `answers` what errors they are."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tag: str | None = '"one"'
        self.ranges = True
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                if outer.answers:
                    self.send_error(outer.answers.pop(0))
                    return
                # As a proxy it is asked for whole addresses.
                body = outer.files.get("/" + self.path.removeprefix("http://").partition("/")[2]
                                       if self.path.startswith("http") else self.path)  # fmt: skip
                if body is None:
                    self.send_error(404)
                    return
                start = 0
                asked = self.headers.get("Range")
                if asked and outer.ranges and self.headers.get("If-Range") == outer.tag:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                if outer.tag:
                    self.send_header("ETag", outer.tag)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                cut = outer.cuts.pop(0) if outer.cuts else len(body)
                self.wfile.write(body[start : start + cut])
                if start + cut < len(body):
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
