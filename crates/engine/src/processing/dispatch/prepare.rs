//! From a claimed step's spec and inputs to the work that goes down the pipe.

use std::sync::Arc;

use calotype_protocol::{Blob, JobId, Work};

use crate::artifact::ArtifactHash;
use crate::error::{Code, Error};
use crate::inference::{self, InputFiles, Plan};
use crate::model::Catalogue;
use crate::processing::job::JobRecord;
use crate::store::{Artifacts, Store};

/// The record of a step, from the journal where it is not at hand, and its work.
pub(super) async fn prepare(
    job: JobId,
    record: Option<Arc<JobRecord>>,
    store: Store,
    artifacts: Artifacts,
    catalogue: Arc<Catalogue>,
) -> (Option<Arc<JobRecord>>, Result<(Box<Work>, Vec<Blob>), Error>) {
    let record = match record {
        Some(record) => record,
        None => match store.job(&job).await {
            Ok(Some(record)) => Arc::new(record),
            Ok(None) => {
                let error = Error::new(Code::Internal, format!("job {job} is not in the journal"));
                return (None, Err(error));
            }
            Err(error) => return (None, Err(error.into())),
        },
    };
    let work = build(Arc::clone(&record), artifacts, catalogue).await;
    (Some(record), work.map(|(work, blobs)| (Box::new(work), blobs)))
}

async fn build(
    record: Arc<JobRecord>,
    artifacts: Artifacts,
    catalogue: Arc<Catalogue>,
) -> Result<(Work, Vec<Blob>), Error> {
    if record.plan.inputs().next().is_none() {
        return inference::work(&record.plan, &catalogue, &InputFiles::default());
    }
    let files = read_inputs(&artifacts, &record.plan).await?;
    tokio::task::spawn_blocking(move || inference::work(&record.plan, &catalogue, &files))
        .await
        .map_err(|error| Error::new(Code::Internal, error.to_string()))?
}

/// The files of a plan's images.
async fn read_inputs(artifacts: &Artifacts, plan: &Plan) -> Result<InputFiles, Error> {
    let read = async |hash: &ArtifactHash| {
        let missing = || Error::new(Code::StoreFailed, format!("the input image {} is gone", hash.0));
        artifacts.read(hash).await?.ok_or_else(missing)
    };
    let mut files = InputFiles::default();
    if let Some(hash) = &plan.init_image {
        files.init_image = Some(read(hash).await?);
    }
    if let Some(hash) = &plan.mask {
        files.mask = Some(read(hash).await?);
    }
    for hash in plan.control.iter().filter_map(|unit| unit.image.as_ref()) {
        files.control.push(read(hash).await?);
    }
    Ok(files)
}
