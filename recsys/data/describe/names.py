"""What a column's name says about it, in the vocabulary of logs."""

import re
from collections.abc import Collection


def _listed(text: str) -> list[str]:
    """The words of ``text``."""
    return text.split()


# Names are split into words, so that click_time is a time and click_count a number.
OF_TIMES = frozenset(
    _listed("time timestamp ts datetime date day hour created event logged unix epoch when at")
)
# Times of the session, the item or the user, or of later events
OF_OTHER_TIMES = frozenset(
    _listed(
        "start begin end upload uploaded register registered birth birthday publish published "
        "updated modified expire expiry next last first attributed attribution conversion "
        "converted install release released signup joined since until previous"
    )
)
# The main task first
OF_LABELS = _listed(
    "label click clicked clicks target y is_click clk is_clicked click_label conversion converted "
    "conversions is_attributed attributed is_conversion purchase purchased purchases buy bought "
    "order ordered install installed long_view like rating stars score response action engaged "
    "watched finish"
)
OF_OUTCOMES = frozenset(
    _listed(
        "click clicked clicks clk like liked likes dislike follow followed comment commented "
        "forward share shared hate favorite favourite fav cart buy bought purchase purchased order "
        "ordered conversion conversions converted attributed install installed long view viewed "
        "watched finish finished enter profile play played rating stars engaged skip skipped reply "
        "retweet download downloaded subscribe subscribed report reported "
        "helpful vote votes"
    )
)
FILLERS = frozenset(_listed("is has did was num number count cnt n total nb the user event flag"))
KNOWN_AFTERWARDS = (  # compared with a name's words joined by _
    r"(^|_)(next|future|dwell|attributed|attribution|completion|scroll|revenue|outcome)(_|$)",
    r"(^|_)(play|watch|watched|read|reading|stay|view|viewing|listen|engagement)_(time|duration|ms"
    r"|seconds|percentage|percent|ratio|rate)",
    r"(^|_)session_(size|length|end|duration|clicks)",
    r"^(conversion|attributed|attribution|purchase|order|sale)_(timestamp|time|id|at|date|delay)$",
    r"^click_(pos|nb)$|^cpo$",
)
OF_ITEMS = _listed(
    "candidate item ad adid advert creative article video movie product news photo song track "
    "listing offer job post content campaign app adgroup sku asin goods"
)
OF_USERS = _listed("user uid userid visitor customer member reviewer device cookie ip viewer")
OF_GROUPS = _listed(
    "impression request query search auction slate list pageview serp session sess visit"
)
OF_SESSIONS = _listed("session sess visit")
OF_DOMAINS = _listed(
    "vertical surface placement tab channel platform product_line marketplace site_type "
    "scenario device_type device_group devicegroup devicetype device environment banner_pos os "
    "app_type pid"
)
OF_IDS = frozenset(
    _listed("id ids uid key hash code uuid guid ip no idx index asin sku zip postcode")
)
OF_AMOUNTS = frozenset(
    _listed(
        "price amount cost bid duration count cnt num number size length len width height weight "
        "age days hours minutes seconds ms score ratio rate pct percent percentage volume balance "
        "income distance latitude longitude lat lon value total avg mean std sum rank position "
        "depth"
    )
)
OF_CODES = frozenset(
    _listed(
        "app device os channel tab type kind category cat brand code country region city state "
        "gender sex version model class level group segment tier hour weekday month browser "
        "language lang network carrier position pos banner page environment platform referrer "
        "source medium color colour day hourmin"
    )
)
OF_SPLITS = frozenset(_listed("split fold dataset partition is_train is_test"))
SHOWN = _listed(
    "inview impressions impression shown candidates displayed slate list items presented"
)
CLICKED = _listed("clicked clicks click chosen selected positives")


def words(name: str) -> list[str]:
    """The lower-case words of a name; the same for ``clickArticleId`` and ``click_article.id``."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    found = [word.lower() for word in re.findall(r"[A-Za-z]+|\d+", spaced)]
    # userid, adid: written as one word
    return [
        part
        for word in found
        for part in ([word[:-2], "id"] if len(word) > 4 and word.endswith("id") else [word])
        if part
    ]


def says(name: str, vocabulary: Collection[str]) -> bool:
    """Whether ``name`` or one of its words is in ``vocabulary``."""
    found = words(name)
    return any(word in vocabulary for word in (*found, "_".join(found), name.lower()))


def place(name: str, vocabulary: list[str]) -> int | None:
    """The first position in ``vocabulary`` of ``name`` or one of its words; None if there is
    none."""
    found = words(name)
    known = [*found, "_".join(found), name.lower()]
    places = [vocabulary.index(word) for word in known if word in vocabulary]
    return min(places, default=None)


def domain_place(name: str) -> int | None:
    """The position in OF_DOMAINS of the name without words such as click and user; None if
    absent."""
    joined = "_".join(word for word in words(name) if word not in ("click", "user", "event", "ad"))
    return OF_DOMAINS.index(joined) if joined in OF_DOMAINS else None


def is_outcome(name: str) -> bool:
    """Whether the name describes an outcome, such as ``is_like`` or ``num_clicks``."""
    left = [word for word in words(name) if word not in FILLERS]
    return bool(left) and all(word in OF_OUTCOMES for word in left)


def known_afterwards(name: str) -> bool:
    """Whether the name describes something known only after the event, such as ``play_time``."""
    joined = "_".join(words(name))
    return any(re.search(pattern, joined) for pattern in KNOWN_AFTERWARDS)
