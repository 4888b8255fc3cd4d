"""The live studio: type a prompt in a browser and watch it being painted, step by step.

    python -m launch.app

--checkpoint=DIR      a run's working directory, or one checkpoint in it; by default the painter
                      that comes with the package
--step=STEP           latest (default), best, or a number, of a working directory
--weights=ema|params  averaged weights (default) or the plain ones
--port=PORT           7860
--host=HOST           127.0.0.1, which only this machine can reach; another one shows the studio to
                      everybody who can reach it, without a password

Stop a painting, write another plan or an inspection of your own, and let it go on from there.
docs/studio.md says more. Ctrl-C ends it. Needs the extra: pip install -e '.[app]'
"""

from __future__ import annotations

import importlib.util
import os
import threading

from absl import flags

from launch import common, painting
from process_gen.core.errors import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    text("checkpoint", None, "working directory or checkpoint", flag_values=values)
    text("step", "latest", "which checkpoint", flag_values=values)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "which weights", flag_values=values)
    whole("port", 7860, "port to serve at", 1, 65535, flag_values=values)
    text("host", "127.0.0.1", "address to serve at", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Loads the painter and serves until it is interrupted."""
    prepare()
    painter = painting.load_painter(values)
    from launch import app_desk, app_page

    desk = app_desk.Desk(painter)
    page = app_page.build(desk)
    try:
        address = app_page.serve(page, values.host, values.port)
        print(f"checkpoint {painter.meta.get('path')}, {painter.meta.get('weights')} weights")
        print(f"the studio is open at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
        desk.close()


def prepare() -> None:
    """Keeps Gradio from the network; before it is imported.

    Raises:
      ConfigError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the studio needs Gradio: pip install -e '.[app]'")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
