"""Folders of few-step pipelines: is what scheduler, times and guidance are what the card says?"""

from fewstep.doctor.student_folders.folder_checkup import check_student_folder, is_pipeline_folder

__all__ = ["check_student_folder", "is_pipeline_folder"]
