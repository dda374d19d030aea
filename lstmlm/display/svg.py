"""What the SVG pictures have in common: the document around them, and text in it. Written by hand: no library, no script in them.

`document`, `label` and `escaped` are for `run_svg` and `gate_plots`.
"""

from html import escape

from lstmlm.errors import printable


def document(width: float, height: float, title: str, style: str, parts: list[str]) -> str:
    """Return a complete SVG document: its parts on paper, which `style` colours as `.paper`.

    Args:
        width: In its units, which are pixels where nothing else is said.
        height: Likewise.
        title: For screen readers and tabs; any text.
        style: CSS.
        parts: Elements, in the order of drawing.
    """
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img">\n<title>{escaped(title)}</title>\n<style>{style}</style>\n'
        f'<rect class="paper" width="{width:g}" height="{height:g}"/>\n{body}\n</svg>\n'
    )


def label(x: float, y: float, words: str, name: str, anchor: str = "start") -> str:
    """Return a text element of the class `name`; `anchor` (start, middle or end) is the part of it that stands at x."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{name}" {place} xml:space="preserve">{escaped(words)}</text>'


def escaped(words: str) -> str:
    """Escape markup, control characters, and the few code points that XML forbids and `printable` lets through."""
    return escape("".join(c if c not in "\ufffe\uffff" else "\ufffd" for c in printable(words)))
