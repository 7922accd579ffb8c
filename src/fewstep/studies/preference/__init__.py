"""Which of two models' pictures people prefer (DisBack, App. B.3)."""

from fewstep.studies.preference.answer_book import AnswerBook
from fewstep.studies.preference.picture_pairs import AskedModel, PairStudy, drawn_study, study_at
from fewstep.studies.preference.preferred import preferred_shares

__all__ = ["AnswerBook", "AskedModel", "PairStudy", "drawn_study", "preferred_shares", "study_at"]
