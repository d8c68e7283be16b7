"""Records of the files in a run folder, checked whenever a command reads one.

Each record class describes one file, one line of a JSON Lines file, or a part of them. A `Format`
names a file in messages. Files of earlier versions keep being read: a field that was renamed is
read under its old name, too, and written under the new one.

The records import no other part of the package than files and errors, so that all parts can use
them.
"""

from nas.records.fields import SCHEMA, Digest, Name, Seconds, to_json
from nas.records.front import FRONT, ArchitectureRecord, FrontMember, FrontRecord, read_front
from nas.records.model import PREPROCESSING, Preprocessing
from nas.records.run import (
    RUN,
    DataSummary,
    DeviceSummary,
    JobLimits,
    JobPlan,
    JobSummary,
    KernelSlowdown,
    RunRecord,
    SearchSummary,
    SpaceSettings,
    StageRecord,
    SupernetSummary,
    TableSummary,
    read_run,
)
from nas.records.supernet import (
    RANKING,
    STANDALONE,
    TRAINING,
    TRAINING_LOG,
    BaselineTaus,
    CheckpointRecord,
    IntervalRecord,
    PooledRanking,
    RankedNetworkRecord,
    RankingRecord,
    Regrets,
    SpaceRanking,
    StandaloneRow,
    StratumRecord,
    TrainingRow,
    read_ranking,
)
from nas.records.trained import (
    MODELS_FOLDER,
    NETWORK_TRAINING,
    TRAINED,
    TRAINED_FILE,
    NetworkTrainingRow,
    SplitAccuracy,
    TrainedRecord,
    read_trained,
)

__all__ = [
    "FRONT",
    "MODELS_FOLDER",
    "NETWORK_TRAINING",
    "PREPROCESSING",
    "RANKING",
    "RUN",
    "SCHEMA",
    "STANDALONE",
    "TRAINED",
    "TRAINED_FILE",
    "TRAINING",
    "TRAINING_LOG",
    "ArchitectureRecord",
    "BaselineTaus",
    "CheckpointRecord",
    "DataSummary",
    "DeviceSummary",
    "Digest",
    "FrontMember",
    "FrontRecord",
    "IntervalRecord",
    "JobLimits",
    "JobPlan",
    "JobSummary",
    "KernelSlowdown",
    "Name",
    "NetworkTrainingRow",
    "PooledRanking",
    "Preprocessing",
    "RankedNetworkRecord",
    "RankingRecord",
    "Regrets",
    "RunRecord",
    "SearchSummary",
    "Seconds",
    "SpaceRanking",
    "SpaceSettings",
    "SplitAccuracy",
    "StageRecord",
    "StandaloneRow",
    "StratumRecord",
    "SupernetSummary",
    "TableSummary",
    "TrainedRecord",
    "TrainingRow",
    "read_front",
    "read_ranking",
    "read_run",
    "read_trained",
    "to_json",
]
