//! The table of planned routes, which are not served. `unserved` answers its rows with 501 `NOT_SUPPORTED`, and
//! `/openapi.json` and `/api/operations` list them. A row leaves the table in the commit that serves it.

use calotype_engine::{Code, Domain, Error};

/// A route that is planned, with the methods that are planned for it.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) methods: &'static [&'static str],
    pub(crate) path: &'static str,
    pub(crate) domain: Domain,
    /// Numbers of the operations that it will serve, for instance `D14`: the fourteenth of the domain `device` in the list of 136
    /// that this project sets out to serve.
    pub(crate) operations: &'static [&'static str],
    /// What it will do, as words behind "it will".
    pub(crate) summary: &'static str,
    /// Why it is not served, as words behind "but".
    pub(crate) reason: &'static str,
    /// What serves the same need today.
    pub(crate) instead: Option<&'static str>,
}

impl Planned {
    /// The answer to a request with the method `method`.
    pub(crate) fn error(&self, method: &str) -> Error {
        let message = format!(
            "{method} {} is not served: it will {}, but {}",
            self.path, self.summary, self.reason
        );
        let advice = self.instead.unwrap_or("GET /api/operations lists what is served");
        Error::new(Code::NotSupported, message).advice(advice)
    }
}

macro_rules! optional {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

/// A row is: methods, path, numbers of operations, what it will do, why it is not served, and what serves the need today.
macro_rules! planned {
    ($($domain:ident {
        $($($method:ident)+ $path:literal [$($number:ident)*]
            $summary:literal because $reason:literal $(instead $instead:literal)?;)+
    })+) => {
        pub(crate) const PLANNED: &[Planned] = &[$($(Planned {
            methods: &[$(stringify!($method)),+],
            path: $path,
            domain: Domain::$domain,
            operations: &[$(stringify!($number)),*],
            summary: $summary,
            reason: $reason,
            instead: optional!($($instead)?),
        },)+)+];
    };
}

planned! {
    Device {
        get "/api/devices/{id}/capabilities" [D2 D3]
            "show what a device can do, and the largest batch of each size"
            because "largest batches are not computed"
            instead "GET /api/devices/{id} shows the capabilities that each worker reported";
        get "/api/devices/{id}/health" [D5 D12]
            "judge a device by its faults of the last hours" because "no history of faults is kept"
            instead "GET /health gives the verdict on all devices, GET /api/devices/{id} the last exit of each worker";
        get "/api/devices/{id}/plan" [D6]
            "recommend settings for a device" because "settings for memory are decided for each job alone"
            instead "POST /api/inference/validate shows how a request would be made to fit";
        post "/api/devices/{id}/optimize" [D7]
            "apply the recommended settings to a device"
            because "settings for memory are decided for each job alone"
            instead "set what models and jobs may take with --memory-share of `calotype serve`";
        post "/api/devices/{id}/benchmark" [D18]
            "measure a device's copy rate, compute rate and step time"
            because "the server starts no measurements of its own"
            instead "GET /api/jobs/{id} shows the measured `timings_ms` of a job";
        post "/api/devices/{id}/reset" [D14]
            "trim a device's caches, or restart its worker processes"
            because "a worker process is restarted only after a fault, or to get its memory back"
            instead "restart the server: each worker process is new then, and jobs that have not ended go on";
        post "/api/devices/{id}/drain" [D13 D20]
            "let a device finish what runs and start nothing new on it"
            because "only the whole server can drain"
            instead "SIGTERM drains the server, for the seconds of --drain";
        post "/api/devices/{id}/enable" [D13 D20]
            "start work again on a device that was drained" because "no single device can be drained";
        get patch "/api/devices/{id}/config" [D19]
            "show or change a device's memory reserve, concurrency and classes"
            because "these are set once, when the server starts"
            instead "see --memory-share and --max-concurrency of `calotype serve`";
        post "/api/devices/select" [D15 D21]
            "score every device for a request and say why"
            because "the scheduler does not report its comparison"
            instead "POST /api/inference/validate names the worker that would run a request";
        get put delete "/api/devices/sets/{name}" [D16]
            "show, change or delete a named group of devices that jobs can be sent to"
            because "a job cannot name the devices that may run it";
    }
    Memory {
        get "/api/memory/{device}" [M2 M4 M17 M20 M23]
            "show one device's memory with its history" because "no history is kept"
            instead "GET /api/memory shows the memory of every device";
        get "/api/memory/leases" [M5 M6]
            "list every lease with its age" because "the ledger does not note when a lease began"
            instead "GET /api/memory lists the leases of each device";
        post "/api/memory/leases" [M8 M9]
            "reserve memory for another program" because "the ledger has leases for models and jobs alone"
            instead "start the server with a smaller --memory-share";
        get "/api/memory/leases/{id}" [M7]
            "show one lease with its age" because "the ledger does not note when a lease began"
            instead "GET /api/memory lists the leases of each device";
        delete "/api/memory/leases/{id}" [M10]
            "release memory that was reserved by hand" because "none can be reserved by hand";
        post "/api/memory/clear" [M11 M12]
            "drop idle models and caches" because "models are evicted only for a job that needs the memory";
        post "/api/memory/defragment" [M13 M14]
            "trim a worker's allocator, or restart the worker while it is idle"
            because "the server never asks a worker to trim"
            instead "restart the server: each worker process is new then, and jobs that have not ended go on";
        post "/api/memory/transfers" [M15]
            "move a model between disk, host memory and devices"
            because "models move only for a job that needs them";
        get "/api/memory/transfers/{id}" [M16]
            "show the progress of a transfer" because "no transfer can be started";
        get patch "/api/memory/limits" [M19]
            "show or change memory budgets" because "budgets are set once, when the server starts"
            instead "GET /api/memory shows them; --memory-share and --weight-cache of `calotype serve` set them";
        get "/api/memory/pressure" [M22]
            "show how near each device is to the end of its memory"
            because "no levels of pressure are computed"
            instead "GET /api/memory shows the budget, the leases and the free memory of each device";
        post "/api/memory/optimize" [M18 M21]
            "free memory down to a target" because "models are evicted only for a job that needs the memory";
        get "/api/memory/recommendations" [M24]
            "advise on memory settings from measurements" because "evictions are not counted by model"
            instead "GET /api/memory shows the hits, misses and evictions of the weight cache";
    }
    Model {
        patch "/api/models/{id}" [O25]
            "change a model's tags and description"
            because "descriptions are only read, from the files beside the model"
            instead "edit `calotype.json` in the model's folder, or `NAME.json` beside its file, and restart the server";
        post "/api/models/{id}/load" [O3 O4 O12 O13]
            "load a model before a job needs it" because "models are loaded only for waiting jobs"
            instead "POST /api/jobs with one step loads the model";
        post "/api/models/{id}/unload" [O5 O6 O14 O15]
            "unload a model" because "models are evicted only for a job that needs the memory";
        get "/api/models/cache" [O7 O8]
            "show the weights in host memory by model and component"
            because "they are listed with the host's memory"
            instead "GET /api/memory shows them as `cache` of the host";
        post "/api/models/cache" [O9]
            "read weights into host memory and keep them there"
            because "the weight cache is filled only by the loads of jobs";
        delete "/api/models/cache" [O10 O11]
            "drop weights from host memory" because "the weight cache evicts only what has to make room";
        post "/api/models/{id}/validate" [O21]
            "check a model's tensors, its hash, and whether it fits each device"
            because "only headers are read, when the server starts"
            instead "`problem` in GET /api/models/{id} says what its headers showed";
        post "/api/models/{id}/benchmark" [O23]
            "measure a model's step time, memory and throughput"
            because "the server starts no measurements of its own"
            instead "GET /api/jobs/{id} shows the measured `timings_ms` and `peak_bytes` of a job";
        post "/api/models/{id}/optimize" [O22]
            "convert a model to another layout or precision" because "no worker converts models";
        post "/api/models/pull" [O26]
            "download a model" because "the server downloads nothing"
            instead "put the model into a model folder and restart the server";
        get "/api/models/{id}/requirements" []
            "show a model's memory by size, batch and precision"
            because "memory is estimated for one request at a time"
            instead "POST /api/inference/validate estimates the memory of a request";
    }
    Processing {
        post "/api/jobs/{id}/retry" [I17]
            "run a job again that failed or was cancelled" because "a job that has ended is never changed"
            instead "submit its request again with POST /api/jobs, under another Idempotency-Key or none";
        get "/api/ws" []
            "send events over a WebSocket" because "events are sent as server-sent events alone"
            instead "GET /api/events follows everything, GET /api/jobs/{id}/events one job";
        get post "/api/workflows" [P1 P20]
            "list workflows, or keep a new one" because "no job can depend on another";
        get put delete "/api/workflows/{id}" [P2]
            "show, change or delete a workflow" because "no job can depend on another";
        post "/api/workflows/{id}/run" [P3]
            "run a workflow" because "no job can depend on another"
            instead "submit each step with POST /api/jobs; `artifact:HASH` takes a picture of an earlier job as its input";
        post "/api/workflows/validate" []
            "check a workflow without running it" because "no job can depend on another"
            instead "POST /api/inference/validate checks one request";
        get post "/api/sessions" [P4 P19]
            "list sessions, or begin one with limits of its own" because "jobs have no groups"
            instead "GET /api/jobs lists all jobs";
        get delete "/api/sessions/{id}" [P5 P7]
            "show or delete a session" because "jobs have no groups"
            instead "GET and DELETE /api/jobs/{id} show and delete one job";
        post "/api/sessions/{id}/pause" [P6]
            "pause all jobs of a session" because "jobs have no groups"
            instead "POST /api/jobs/{id}/pause pauses one job";
        post "/api/sessions/{id}/resume" [P6]
            "resume all jobs of a session" because "jobs have no groups"
            instead "POST /api/jobs/{id}/resume resumes one job";
        post "/api/sessions/{id}/cancel" [P6]
            "cancel all jobs of a session" because "jobs have no groups"
            instead "POST /api/jobs/{id}/cancel cancels one job";
        get post "/api/batches" [P8 P10 P11 I11 X13 X25]
            "list batches, or run one of up to 10000 items" because "jobs have no groups"
            instead "submit each item with POST /api/jobs?class=batch; `count` makes up to 8 pictures of one prompt";
        get delete "/api/batches/{id}" [P9 P12 I12 X14]
            "show a batch with the state of each item, or delete it" because "jobs have no groups"
            instead "GET and DELETE /api/jobs/{id} show and delete one job";
        get "/api/queue" []
            "list what waits, in its order" because "each job reports its own place alone"
            instead "GET /api/jobs?state=queued lists what waits, each job with its `position` and `reason`";
        post "/api/queue/pause" []
            "start nothing new until the queue is resumed" because "jobs are paused one by one"
            instead "POST /api/jobs/{id}/pause pauses one job";
        post "/api/queue/resume" []
            "start work again after the queue was paused" because "the queue cannot be paused"
            instead "POST /api/jobs/{id}/resume resumes one job";
        post "/api/queue/clear" []
            "cancel everything that waits" because "jobs are cancelled one by one"
            instead "POST /api/jobs/{id}/cancel cancels one job";
    }
    Inference {
        get "/api/inference/capabilities" [I1 I2 I6 I7]
            "show what all devices together can do" because "capabilities are listed by worker alone"
            instead "GET /api/devices shows the capabilities that each worker reported";
        get "/api/inference/samplers" [I1 I2]
            "list the samplers of all devices" because "capabilities are listed by worker alone"
            instead "GET /api/devices shows the samplers of each worker";
        get "/api/inference/schedules" [I1 I2]
            "list the schedules of all devices" because "capabilities are listed by worker alone"
            instead "GET /api/devices shows the schedules of each worker";
        get "/api/inference/sessions" [I8]
            "list inference jobs with their resources and logs" because "no logs of a job are kept"
            instead "GET /api/jobs lists all jobs";
        get "/api/inference/sessions/{id}" [I9]
            "show an inference job with its resources and logs" because "no logs of a job are kept"
            instead "GET /api/jobs/{id} shows a job with its timings and its highest memory";
    }
    Postprocessing {
        get "/api/postprocessing/capabilities" [X1 X2]
            "list what each device can do with finished pictures"
            because "no worker changes finished pictures";
        get "/api/postprocessing/models" [X9 X10 X11 X12 X18]
            "list upscalers, face restorers and other networks for finished pictures"
            because "no worker runs such networks"
            instead "GET /api/models lists the models of every other kind";
        post "/api/postprocessing/upscale" [X3 X4]
            "enlarge a picture" because "no worker runs upscaling networks"
            instead "`hires` in POST /api/inference/generate makes a larger picture in a second pass";
        post "/api/postprocessing/enhance" [X5 X6]
            "correct contrast, sharpness, noise and exposure" because "no worker changes finished pictures";
        post "/api/postprocessing/color" [X24]
            "correct colours, or take them over from another picture"
            because "no worker changes finished pictures";
        post "/api/postprocessing/restore-faces" [X21]
            "restore faces" because "no worker runs networks for faces"
            instead "`mask` in POST /api/inference/generate draws a part of a picture anew";
        post "/api/postprocessing/style" [X22]
            "give a picture the style of another" because "no worker runs networks for style transfer"
            instead "`init_image` with `loras` in POST /api/inference/generate draws a picture anew in the style of a LoRA";
        post "/api/postprocessing/matte" [X23]
            "separate a picture from its background" because "no worker runs matting networks";
        post "/api/postprocessing/safety" [X8]
            "score what a picture shows" because "no worker runs safety networks: no picture is checked";
        get put "/api/postprocessing/safety/policy" [X16]
            "show or change what is done with unsafe pictures" because "no picture is checked";
        post "/api/postprocessing/apply" [X19 X20 X26 X27]
            "apply several operations to a picture in one pass" because "no worker changes finished pictures";
        post "/api/postprocessing/validate" [X7]
            "check such operations without running them" because "no worker changes finished pictures";
        post "/api/postprocessing/compare" [X15]
            "measure PSNR and SSIM between two pictures" because "no job compares pictures";
        post "/api/postprocessing/benchmark" [X15]
            "measure how long such operations take" because "no worker changes finished pictures";
        get "/api/postprocessing/analytics" [X17]
            "show throughput, latency and errors by operation" because "there are no such operations"
            instead "GET /metrics shows how many jobs ended and how long they took";
    }
}
