"""Masks by HTTP, for annotation tools, for programs, and for a page in the browser.

`endpoint`, `pictures`, `origins` and `service` are shared; each of `json_api`, `label_studio`, `cvat`, `samapi` and
`live` is what one kind of client asks for.
"""
