"""Plug-ins for other libraries; `qbits.plugins` imports each when its library is imported."""
