"""How a study is shown to people."""
