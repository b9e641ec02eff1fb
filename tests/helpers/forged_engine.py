"""The engine that forged stores name."""

ENGINE = {"device": "cpu", "dtype": "float32"}
