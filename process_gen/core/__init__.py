"""Words and rules that everything else hangs on; no device is needed to import them."""
