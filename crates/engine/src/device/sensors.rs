//! Live figures of the devices. They are read when somebody asks, at most once a second, each kind of driver on a thread of
//! its own: one that hangs holds up neither the asker nor the others, and nothing is read while nobody asks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::amd::AmdSensors;
use super::host::HostSensors;
use super::nvidia::NvmlSensors;
use super::{Device, Reading};

/// A reading that is not older is told again.
const VALID: Duration = Duration::from_secs(1);
/// How long an asker waits for a driver, before it gets the reading before with its age.
const PATIENCE: Duration = Duration::from_millis(500);

/// One kind of driver. It may block; a device that does not answer is left out.
pub(crate) trait ReadSensors: Send {
    /// What the devices say now, by id.
    fn read(&mut self) -> BTreeMap<String, Reading>;
}

/// The live figures of every device that a driver tells about. Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct Sensors {
    sources: Arc<[Source]>,
    valid: Duration,
    patience: Duration,
}

/// A thread that reads one kind of driver when it is asked.
struct Source {
    ask: SyncSender<()>,
    latest: watch::Receiver<Arc<Taken>>,
}

/// What a driver said last.
#[derive(Default)]
struct Taken {
    /// When the latest reading began; `None` before the first one.
    at: Option<Instant>,
    /// Of a device that did not answer then, the last one it gave.
    readings: BTreeMap<String, Reading>,
}

impl Sensors {
    /// Sensors for the devices of an inventory. Those that are only declared have none.
    pub fn start(devices: &[Device]) -> Self {
        let of_kind = |kind: &str| -> Vec<Device> {
            let read_before = |device: &&Device| device.kind == kind && device.read_at_ms.is_some();
            devices.iter().filter(read_before).cloned().collect()
        };
        let (host, nvidia, amd) = (of_kind("cpu"), of_kind("cuda"), of_kind("rocm"));
        let cards = nvidia
            .iter()
            .filter_map(|card| Some((card.id.clone(), card.uuid.clone()?)))
            .collect();
        let sys = PathBuf::from("/sys");
        let readers: [(Vec<Device>, Box<dyn ReadSensors>); 3] = [
            (host, Box::new(HostSensors::new())),
            (nvidia, Box::new(NvmlSensors::new(cards))),
            (amd.clone(), Box::new(AmdSensors::new(sys, amd))),
        ];
        let readers = readers.into_iter().filter(|(devices, _)| !devices.is_empty());
        let known = |devices: Vec<Device>| {
            let reading = |device: Device| Some((device.id.clone(), device.reading()?));
            devices.into_iter().filter_map(reading).collect()
        };
        let sensors = Self::over(
            readers.map(|(devices, reader)| (known(devices), reader)),
            VALID,
            PATIENCE,
        );
        // Opening a driver takes longer than reading it, and the host's load needs a reading to begin from.
        for source in sensors.sources.iter() {
            source.ask_if_older(VALID);
        }
        sensors
    }

    fn over(
        readers: impl Iterator<Item = (BTreeMap<String, Reading>, Box<dyn ReadSensors>)>,
        valid: Duration,
        patience: Duration,
    ) -> Self {
        Self {
            sources: readers
                .map(|(known, reader)| Source::start(known, reader))
                .collect(),
            valid,
            patience,
        }
    }

    /// The figures of a device, at most a second old where its driver answers in time, else the last ones with their age.
    /// `None` for a device that nothing can read.
    pub async fn read(&self, device_id: &str) -> Option<Reading> {
        let source = self.source(device_id)?;
        let taken = source.fresh(self.valid, self.until()).await;
        taken.readings.get(device_id).cloned()
    }

    /// The last figures of a device, without a wait: for who comes again. Newer ones are asked for where they are older
    /// than a second.
    pub fn latest(&self, device_id: &str) -> Option<Reading> {
        let source = self.source(device_id)?;
        source.ask_if_older(self.valid);
        source.latest.borrow().readings.get(device_id).cloned()
    }

    /// The figures of every device that can be read, by id. All drivers are asked at the same time.
    pub async fn read_all(&self) -> BTreeMap<String, Reading> {
        for source in self.sources.iter() {
            source.ask_if_older(self.valid);
        }
        let until = self.until();
        let mut readings = BTreeMap::new();
        for source in self.sources.iter() {
            readings.extend(source.fresh(self.valid, until).await.readings.clone());
        }
        readings
    }

    fn source(&self, device_id: &str) -> Option<&Source> {
        let is_its = |source: &&Source| source.latest.borrow().readings.contains_key(device_id);
        self.sources.iter().find(is_its)
    }

    fn until(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.patience
    }
}

impl Taken {
    fn is_young(&self, valid: Duration) -> bool {
        self.at.is_some_and(|at| at.elapsed() <= valid)
    }
}

impl Source {
    fn start(known: BTreeMap<String, Reading>, mut reader: Box<dyn ReadSensors>) -> Self {
        // One question may wait while a reading is under way; more would be the same question.
        let (ask, asked) = sync_channel(1);
        let first = Taken {
            at: None,
            readings: known,
        };
        let (told, latest) = watch::channel(Arc::new(first));
        // A thread of its own and no task: a runtime waits for its blocking tasks at its end, also for those that hang.
        let thread = std::thread::Builder::new().name("sensors".into()).spawn(move || {
            while asked.recv().is_ok() {
                let at = Some(Instant::now());
                let mut readings = told.borrow().readings.clone();
                readings.extend(reader.read());
                if told.send(Arc::new(Taken { at, readings })).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = thread {
            tracing::warn!("Failed to start a thread for sensors, figures stay as they are: {error}");
        }
        Self { ask, latest }
    }

    fn ask_if_older(&self, valid: Duration) {
        if !self.latest.borrow().is_young(valid) {
            // Full: one is asked already.
            let _ = self.ask.try_send(());
        }
    }

    async fn fresh(&self, valid: Duration, until: tokio::time::Instant) -> Arc<Taken> {
        let asked_at = Instant::now();
        self.ask_if_older(valid);
        let mut latest = self.latest.clone();
        let answers = |taken: &Arc<Taken>| taken.is_young(valid) || taken.at.is_some_and(|at| at >= asked_at);
        let waited = tokio::time::timeout_at(until, latest.wait_for(answers)).await;
        match waited {
            Ok(Ok(taken)) => Arc::clone(&taken),
            // Too late, or its thread is gone.
            Ok(Err(_)) | Err(_) => Arc::clone(&self.latest.borrow()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// A driver whose next answer a test decides.
    #[derive(Clone, Default)]
    struct Script {
        free_bytes: Arc<AtomicU64>,
        readings: Arc<AtomicU64>,
        hangs_until: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
        is_lost: Arc<Mutex<bool>>,
    }

    impl ReadSensors for Script {
        fn read(&mut self) -> BTreeMap<String, Reading> {
            let number = self.readings.fetch_add(1, Ordering::SeqCst) + 1;
            let hang = self.hangs_until.lock().unwrap().take();
            if let Some(hang) = hang {
                let _ = hang.recv();
            }
            if *self.is_lost.lock().unwrap() {
                return BTreeMap::new();
            }
            let reading = Reading {
                at_ms: number,
                free_bytes: Some(self.free_bytes.load(Ordering::SeqCst)),
                ..Reading::default()
            };
            BTreeMap::from([("cuda0".to_owned(), reading)])
        }
    }

    fn sensors(script: &Script, valid: Duration) -> Sensors {
        let known = BTreeMap::from([("cuda0".to_owned(), Reading::default())]);
        let reader: Box<dyn ReadSensors> = Box::new(script.clone());
        Sensors::over([(known, reader)].into_iter(), valid, Duration::from_secs(20))
    }

    async fn free_bytes(sensors: &Sensors) -> Option<u64> {
        sensors.read("cuda0").await.unwrap().free_bytes
    }

    #[tokio::test]
    async fn figures_change_when_the_drivers_do() {
        let script = Script::default();
        let sensors = sensors(&script, Duration::ZERO);
        for bytes in [100, 70, 0, 100] {
            script.free_bytes.store(bytes, Ordering::SeqCst);
            assert_eq!(free_bytes(&sensors).await, Some(bytes));
            assert_eq!(sensors.read_all().await["cuda0"].free_bytes, Some(bytes));
        }
    }

    #[tokio::test]
    async fn a_young_reading_is_told_again_and_nothing_is_read_while_nobody_asks() {
        let script = Script::default();
        let sensors = sensors(&script, Duration::from_secs(3600));
        assert_eq!(script.readings.load(Ordering::SeqCst), 0);
        let first = sensors.read("cuda0").await.unwrap();
        script.free_bytes.store(7, Ordering::SeqCst);
        assert_eq!(sensors.read("cuda0").await.unwrap(), first);
        assert_eq!(script.readings.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_driver_that_hangs_holds_nobody_up_and_its_last_reading_keeps_its_time() {
        let script = Script::default();
        let mut sensors = sensors(&script, Duration::ZERO);
        let before = sensors.read("cuda0").await.unwrap();
        let (answer, hangs_until) = mpsc::channel();
        *script.hangs_until.lock().unwrap() = Some(hangs_until);
        script.free_bytes.store(7, Ordering::SeqCst);
        sensors.patience = Duration::from_millis(1);
        for _ in 0..3 {
            assert_eq!(sensors.read("cuda0").await.unwrap(), before);
            assert_eq!(sensors.read_all().await["cuda0"], before);
            assert_eq!(sensors.latest("cuda0").as_ref(), Some(&before));
        }
        answer.send(()).unwrap();
        sensors.patience = Duration::from_secs(20);
        assert_eq!(free_bytes(&sensors).await, Some(7));
    }

    #[tokio::test]
    async fn a_card_that_is_lost_keeps_its_last_reading_with_its_time() {
        let script = Script::default();
        let sensors = sensors(&script, Duration::ZERO);
        let before = sensors.read("cuda0").await.unwrap();
        *script.is_lost.lock().unwrap() = true;
        assert_eq!(sensors.read("cuda0").await.unwrap(), before);
    }

    #[tokio::test]
    async fn what_no_driver_tells_about_has_no_reading() {
        let declared: super::super::Declared = "xpu0=16GiB".parse().unwrap();
        let sensors = Sensors::start(&super::super::inventory(&[declared]));
        assert_eq!(sensors.read("xpu0").await, None);
        assert_eq!(sensors.read("nowhere").await, None);
        let host = sensors.read("cpu0").await.unwrap();
        assert!(host.free_bytes.unwrap() > 0);
    }
}
