"""``python -m tests.docs``: write what is made from the code into the documentation anew."""

from fedhubert.config.explain import markdown

from .pages import REPOSITORY

if __name__ == "__main__":
    chapter = REPOSITORY / "conf/README.md"
    text = chapter.read_text()
    before, after = text.split("<!-- keys -->\n")[0], text.split("<!-- /keys -->\n")[1]
    chapter.write_text(f"{before}<!-- keys -->\n{markdown()}\n<!-- /keys -->\n{after}")
