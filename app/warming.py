"""What the first page of results needs, loaded in the background once a process serves.

Nobody else waits for it; a page that is asked for meanwhile waits for what is under way, as it needs the same.
What is loaded stays, and the garbage collector is told so.
"""

import gc
import logging
import threading

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app import charts, logs, progress, results
from app import definition as definitions
from app.db import Database
from app.models import Participant, Study
from app.observations import KEPT, Memory

# Participants whose server was away for a moment come back to the new one all at once: they come first.
AFTER_S = 3.0
# Objects made and not yet gone before the collector looks at the young ones, and passes over those before it looks
# at older ones. Python's 700 have it look for every few answers; with many more, what errors leave behind piles up.
THRESHOLDS = (5_000, 10, 10)


def start(database: Database, memory: Memory) -> None:
    """Begin AFTER_S from now, in a thread that ends with the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    timer = threading.Timer(AFTER_S, warm, (database, memory))
    timer.name, timer.daemon = "warming", True
    timer.start()


def warm(database: Database, memory: Memory) -> None:
    """Load the libraries, and the answers of the studies that participants were last seen in; shows nothing."""
    import scipy.stats  # noqa: F401 (a second, the first time)

    charts.viridis()
    try:
        with database.read() as session:
            lately = (
                select(Study.slug).join(Participant, Participant.study_id == Study.id).group_by(Study.slug)
            )
            slugs = session.scalars(
                lately.order_by(func.max(Participant.last_seen_at).desc()).limit(KEPT)
            ).all()
        for slug in reversed(slugs):  # the last one is the last to be forgotten
            with database.read() as session:
                study = definitions.active(session, slug)
                if study is not None:
                    results.compute(session, study, progress.default_data(session, study), memory)
    except SQLAlchemyError as error:  # the page itself will say so, if it lasts
        logging.getLogger(__name__).warning("results were not loaded beforehand: %s", logs.reason(error))
    # A pass over these 200,000 objects, which are here to stay, would hold every answer up for a tenth of a second.
    gc.freeze()
