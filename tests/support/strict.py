"""A server with mutual TLS and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_factory import Credentials
from model_factory_server.access.tokens import token_line
from support.certificates import Authority
from support.server import ServerProcess

TOKEN = "canary-token-Jk2x9QpL"


class Strict:
    """The server with certificates and tokens."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "authority")
        self.unknown_authority = Authority(folder, "unknown-authority")
        self.server_pair = self.authority.issue("server")
        self.client_pair = self.authority.issue("trainer")
        self.tokens = folder / "tokens"
        self.token_file = folder / "token"
        self.token_file.write_text(f"{TOKEN}\n", encoding="utf-8")
        self.let_in(token_line("trainer", TOKEN, 1))
        self.arguments = ("--tls-cert", str(self.server_pair.cert), "--tls-key", str(self.server_pair.key),
                          "--tls-client-ca", str(self.authority.file), "--tokens", str(self.tokens))  # fmt: skip
        self.process: ServerProcess

    def let_in(self, *lines: str) -> None:
        staged = self.tokens.with_suffix(".new")
        staged.write_text("# who\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
        staged.replace(self.tokens)

    def credentials(self, **changes: Any) -> Credentials:
        fields = {"ca_file": self.authority.file, "cert_file": self.client_pair.cert, "key_file": self.client_pair.key,
                  "token_file": self.token_file}  # fmt: skip
        return Credentials(**(fields | changes))
