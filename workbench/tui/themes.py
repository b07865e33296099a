"""The colours: wb-dark, wb-light, and what our own names mean under the terminal's colours.

Every colour of a chart lies on an entry of the xterm-256 palette, where tmux without RGB leaves it
as it is, and the eight can be told apart by people who do not see red and green alike.
"""

from textual.theme import Theme

# $good $busy $note $bad: states and findings; always beside a mark and a word.
# $quiet: secondary text; $frame: borders; $chart-1 …: curves.
WB_DARK = Theme(
    name="wb-dark",
    primary="#5fafff",
    secondary="#87d7d7",
    accent="#ffaf5f",
    foreground="#d0d0d0",
    background="#121212",
    surface="#121212",
    panel="#1c1c1c",
    success="#87d787",
    warning="#ffd75f",
    error="#ff8787",
    dark=True,
    variables={
        "good": "#87d787",
        "busy": "#5fafff",
        "note": "#ffd75f",
        "bad": "#ff8787",
        "quiet": "#8a8a8a",
        "frame": "#3a3a3a",
        "frame-focus": "#5fafff",
        "heading": "#ffffff",
        "cursor-row": "#262626",
        "chart-1": "#5fafff",
        "chart-2": "#ffaf5f",
        "chart-3": "#87d787",
        "chart-4": "#d787d7",
        "chart-5": "#ffd75f",
        "chart-6": "#87d7d7",
        "chart-7": "#ff8787",
        "chart-8": "#bcbcbc",
        "chart-dim": "#3f5f87",
        "axis": "#6c6c6c",
        "block-cursor-foreground": "#121212",
        "block-cursor-background": "#5fafff",
        "input-selection-background": "#005f87 60%",
    },
)

WB_LIGHT = Theme(
    name="wb-light",
    primary="#005faf",
    secondary="#005f5f",
    accent="#af5f00",
    foreground="#262626",
    background="#ffffff",
    surface="#ffffff",
    panel="#eeeeee",
    success="#005f00",
    warning="#875f00",
    error="#af0000",
    dark=False,
    variables={
        "good": "#005f00",
        "busy": "#005faf",
        "note": "#875f00",
        "bad": "#af0000",
        "quiet": "#626262",
        "frame": "#c6c6c6",
        "frame-focus": "#005faf",
        "heading": "#000000",
        "cursor-row": "#e4e4e4",
        "chart-1": "#005faf",
        "chart-2": "#af5f00",
        "chart-3": "#005f00",
        "chart-4": "#870087",
        "chart-5": "#875f00",
        "chart-6": "#005f5f",
        "chart-7": "#af0000",
        "chart-8": "#585858",
        "chart-dim": "#afd7ff",
        "axis": "#8a8a8a",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-background": "#005faf",
        "input-selection-background": "#afd7ff",
    },
)

# What our names mean under every other theme, the terminal's own sixteen colours included: there
# a name of an ANSI colour is used as it is, and elsewhere Textual turns it into RGB.
DEFAULTS: dict[str, str] = {
    "good": "ansi_green",
    "busy": "ansi_blue",
    "note": "ansi_yellow",
    "bad": "ansi_red",
    "quiet": "ansi_bright_black",
    "frame": "ansi_bright_black",
    "frame-focus": "ansi_blue",
    "heading": "ansi_default",
    "cursor-row": "ansi_default",
    "chart-1": "ansi_blue",
    "chart-2": "ansi_yellow",
    "chart-3": "ansi_green",
    "chart-4": "ansi_magenta",
    "chart-5": "ansi_bright_yellow",
    "chart-6": "ansi_cyan",
    "chart-7": "ansi_red",
    "chart-8": "ansi_default",
    "chart-dim": "ansi_bright_black",
    "axis": "ansi_bright_black",
}
