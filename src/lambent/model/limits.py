"""Every number that bounds something, with its source.

AWS's figures come from the quotas page (gettingstarted-limits, 2026) unless said otherwise; the rest are
Lambent's own and say why. Units are in the names.
"""

# --- payloads -------------------------------------------------------------------------------------------
SYNC_PAYLOAD_MAX_BYTES = 6_291_456
ASYNC_PAYLOAD_MAX_BYTES = 1_048_576
#: 6 MiB + 100: what the Runtime API accepts as a response.
RESPONSE_MAX_BYTES = 6_291_556
#: X-Amz-Client-Context, base64, as the model documents it.
CLIENT_CONTEXT_MAX_BYTES = 3_583
#: Control-plane requests: the base64 of a 50 MB zip and its JSON (AWS answers with this number).
CONTROL_REQUEST_MAX_BYTES = 70_167_211
HEADERS_MAX_BYTES = 65_536  # AWS: 1 MB for line + headers; no client we know sends more than a few KB
LOG_TAIL_MAX_BYTES = 4_096

# --- code -----------------------------------------------------------------------------------------------
ZIP_MAX_BYTES = 52_428_800
UNZIPPED_MAX_BYTES = 262_144_000
#: Entries in one zip. Lambent's own: a directory bomb costs inodes, not bytes.
ZIP_ENTRIES_MAX = 100_000
CODE_STORAGE_MAX_BYTES = 322_122_547_200
ENVIRONMENT_VARIABLES_MAX_BYTES = 4_096

# --- configuration --------------------------------------------------------------------------------------
MEMORY_MIN_MIB, MEMORY_MAX_MIB, MEMORY_DEFAULT_MIB = 128, 10_240, 128
TIMEOUT_MAX_S, TIMEOUT_DEFAULT_S = 900, 3
TMP_MAX_MIB, TMP_DEFAULT_MIB = 10_240, 512
FUNCTION_NAME_MAX = 64
LIST_MAX = 50  # ListFunctions, ListVersionsByFunction return at most 50 whatever MaxItems says

# --- concurrency ----------------------------------------------------------------------------------------
ACCOUNT_CONCURRENCY_DEFAULT = 1_000
UNRESERVED_CONCURRENCY_MIN = 100
#: Synchronous requests a second for each unit of concurrency.
REQUEST_RATE_PER_CONCURRENCY = 10
#: Today's scaling rate: 1,000 environments every 10 s for each function, refilled continuously.
SCALING_BURST_ENVIRONMENTS = 1_000
SCALING_ENVIRONMENTS_PER_S = 100
#: Provisioned concurrency comes up at 6,000 environments a minute for each function; the bucket is 10 s of it.
PROVISIONED_ENVIRONMENTS_PER_MIN = 6_000
PROVISIONED_BURST_ENVIRONMENTS = 1_000
#: The rule until November 2023: a regional burst, then 500 a minute for the whole region.
CLASSIC_ENVIRONMENTS_PER_MIN = 500
CLASSIC_BURST_LARGE, CLASSIC_BURST_MEDIUM, CLASSIC_BURST_SMALL = 3_000, 1_000, 500
CLASSIC_BURST_BY_REGION = {
    "us-west-2": CLASSIC_BURST_LARGE,
    "us-east-1": CLASSIC_BURST_LARGE,
    "eu-west-1": CLASSIC_BURST_LARGE,
    "ap-northeast-1": CLASSIC_BURST_MEDIUM,
    "eu-central-1": CLASSIC_BURST_MEDIUM,
    "us-east-2": CLASSIC_BURST_MEDIUM,
}

# --- environments ---------------------------------------------------------------------------------------
INIT_TIMEOUT_S = 10
#: Init of provisioned concurrency, SnapStart's publishing and managed instances: the function's timeout, within these
#: (lambda-runtime-environment).
LONG_INIT_TIMEOUT_MIN_S, LONG_INIT_TIMEOUT_MAX_S = 130, 900
#: SnapStart: the restore with its after-restore hooks.
RESTORE_TIMEOUT_S = 10
#: PerExecutionEnvironmentMaxConcurrency of managed instances.
ENVIRONMENT_CONCURRENCY_MAX = 1_600
#: Managed instances (lambda-managed-instances-execution-environment, -scaling).
MANAGED_MEMORY_MIN_MIB, MANAGED_MEMORY_MAX_MIB = 2_048, 32_768
MANAGED_GIB_PER_VCPU_DEFAULT = 2.0
MANAGED_CONCURRENCY_PER_VCPU_MAX = 64
#: Without PerExecutionEnvironmentMaxConcurrency, for each vCPU.
MANAGED_CONCURRENCY_PYTHON, MANAGED_CONCURRENCY_NODEJS = 16, 64
IDLE_RECLAIM_S = 600
#: 1,769 MB of memory is one vCPU.
MEMORY_PER_VCPU_MIB = 1_769
OPEN_FILES_MAX = 1_024
PROCESSES_MAX = 1_024
#: What AWS calls a megabyte in its docs and logs.
MIB = 1_048_576
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
