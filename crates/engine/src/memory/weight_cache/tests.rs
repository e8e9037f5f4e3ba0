use proptest::prelude::*;

use super::*;

fn source(name: &str, bytes: u64) -> Source {
    Source {
        files: vec![Stamp {
            path: name.into(),
            bytes,
            modified_ns: Some(1),
        }],
    }
}

fn cache(budget_bytes: u64) -> WeightCache {
    WeightCache::new("/dev/shm/x".into(), budget_bytes)
}

/// Wants a component and lets its copy be made.
fn held(cache: &mut WeightCache, name: &str, bytes: u64) -> SegmentId {
    cache.want(source(name, bytes));
    let steps = cache.next();
    let [Step::Fill { segment, .. }] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    cache.filled(segment, Ok(bytes));
    segment.clone()
}

#[test]
fn what_was_read_from_files_once_comes_from_memory_the_next_time() {
    let mut cache = cache(100);
    let unet = source("unet", 60);
    assert_eq!(cache.serve(&unet, "a"), None);
    let segment = held(&mut cache, "unet", 60);
    let served = cache.serve(&unet, "a").unwrap();
    assert_eq!((served.id, served.bytes), (segment, 60));
    cache.want(unet);
    assert_eq!(cache.next(), []);
    let view = cache.view().unwrap();
    assert_eq!((view.hits, view.misses, view.used_bytes), (1, 1, 60));
}

#[test]
fn a_segment_is_deleted_only_after_every_worker_that_maps_it_has_released_it_or_is_dead() {
    let mut cache = cache(100);
    let first = held(&mut cache, "first", 60);
    for worker in ["a", "b", "c"] {
        cache.serve(&source("first", 60), worker).unwrap();
    }
    // Wanted once, it pushes nobody out; wanted again, it does.
    let second = source("second", 70);
    cache.want(second.clone());
    assert_eq!(cache.next(), []);
    cache.want(second.clone());
    let release = |worker: &str| Step::Release {
        segment: first.clone(),
        worker: worker.into(),
    };
    assert_eq!(cache.next(), [release("a"), release("b"), release("c")]);
    assert_eq!(cache.serve(&source("first", 60), "d"), None, "it leaves");
    cache.released(&first, "a");
    cache.worker_gone("b");
    assert_eq!(cache.next(), []);
    cache.released(&first, "c");
    let path = PathBuf::from("/dev/shm/x").join(&first.0);
    let free = Step::Free {
        segment: first.clone(),
        path,
    };
    assert_eq!(cache.next(), [free]);
    assert_eq!(cache.next(), [], "its room is not there before its file is gone");
    cache.freed(&first);
    assert!(matches!(cache.next().as_slice(), [Step::Fill { source, .. }] if *source == second));
}

#[test]
fn files_that_changed_are_not_served_from_their_old_copy() {
    let mut cache = cache(100);
    let old = held(&mut cache, "unet", 40);
    let mut changed = source("unet", 40);
    changed.files[0].modified_ns = Some(2);
    assert_eq!(cache.serve(&changed, "a"), None);
    cache.want(changed.clone());
    let steps = cache.next();
    assert!(
        steps
            .iter()
            .any(|step| matches!(step, Step::Free { segment, .. } if *segment == old))
    );
    assert!(
        steps
            .iter()
            .any(|step| matches!(step, Step::Fill { source, .. } if *source == changed))
    );
}

#[test]
fn what_is_coming_waits_for_nobody_to_leave_and_ends_in_memory_or_not_at_all() {
    let mut cache = cache(100);
    let (unet, vae) = (source("unet", 60), source("vae", 30));
    assert!(!cache.is_coming(&unet));
    cache.want(unet.clone());
    cache.want(vae.clone());
    assert!(cache.is_coming(&unet) && cache.is_coming(&vae));
    // One copy at a time.
    let steps = cache.next();
    let [Step::Fill { segment, .. }] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    assert!(cache.is_coming(&unet) && cache.is_coming(&vae) && !cache.is_ready(&unet));
    cache.filled(segment, Ok(60));
    assert!(cache.is_ready(&unet) && !cache.is_coming(&unet) && cache.is_coming(&vae));
    let steps = cache.next();
    let [Step::Fill { segment, .. }] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    cache.filled(segment, Err("the disk is damaged".into()));
    assert!(!cache.is_ready(&vae) && !cache.is_coming(&vae));
    // Its file is deleted first.
    assert!(matches!(cache.next().as_slice(), [Step::Free { .. }]));
    // For this one the first would have to leave, whoever maps it.
    let large = source("large", 70);
    cache.want(large.clone());
    assert!(!cache.is_coming(&large));
}

#[test]
fn what_cannot_be_copied_or_loaded_is_not_tried_again_and_leaves() {
    let mut cache = cache(100);
    cache.want(source("cut off", 10));
    let steps = cache.next();
    let [Step::Fill { segment, .. }] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    cache.filled(segment, Err("no space".into()));
    assert!(matches!(cache.next().as_slice(), [Step::Free { .. }]));
    cache.freed(segment);
    cache.want(source("cut off", 10));
    assert_eq!(cache.next(), []);

    let strange = held(&mut cache, "strange", 10);
    cache.serve(&source("strange", 10), "a").unwrap();
    cache.distrust(&strange);
    assert!(matches!(cache.next().as_slice(), [Step::Release { .. }]));
    cache.want(source("strange", 10));
    assert_eq!(cache.next(), []);
}

#[test]
fn a_cache_without_a_budget_holds_nothing_and_shows_nothing() {
    let mut cache = cache(0);
    cache.want(source("unet", 0));
    assert_eq!((cache.next(), cache.view()), (Vec::new(), None));
}

proptest! {
    /// Workers map, release and die in any order; copies fail and end late.
    #[test]
    fn the_budget_holds_and_nothing_mapped_is_deleted(
        moves in proptest::collection::vec((0u8..7, 0usize..6, 0usize..3), 0..200),
    ) {
        const SIZES: [u64; 6] = [10, 25, 40, 60, 90, 130];
        let workers = ["a", "b", "c"];
        let mut cache = cache(100);
        let mut mapped: BTreeSet<(SegmentId, &str)> = BTreeSet::new();
        let (mut filling, mut releases, mut frees) = (Vec::new(), Vec::new(), Vec::new());
        for (what, which, who) in moves {
            let (source, worker) = (source(&format!("model {which}"), SIZES[which]), workers[who]);
            match what {
                0 | 1 => cache.want(source),
                2 => if let Some(segment) = cache.serve(&source, worker) {
                    mapped.insert((segment.id, worker));
                },
                3 => if let Some((segment, bytes)) = filling.pop() {
                    let outcome = if which == 0 { Err("no".into()) } else { Ok(bytes) };
                    cache.filled(&segment, outcome);
                },
                4 => if let Some((segment, worker)) = releases.pop() {
                    mapped.remove(&(SegmentId::clone(&segment), worker));
                    cache.released(&segment, worker);
                },
                5 => if let Some(segment) = frees.pop() {
                    cache.freed(&segment);
                },
                _ => {
                    mapped.retain(|(_, mapper)| *mapper != worker);
                    releases.retain(|(_, mapper)| *mapper != worker);
                    cache.worker_gone(worker);
                }
            }
            for step in cache.next() {
                match step {
                    Step::Fill { segment, source, .. } => filling.push((segment, source.bytes())),
                    Step::Release { segment, worker } => {
                        let worker = workers.into_iter().find(|known| *known == worker).unwrap();
                        prop_assert!(mapped.contains(&(segment.clone(), worker)));
                        releases.push((segment, worker));
                    }
                    Step::Free { segment, .. } => {
                        prop_assert!(!mapped.iter().any(|(of, _)| *of == segment));
                        frees.push(segment);
                    }
                }
            }
            prop_assert!(cache.used_bytes() <= 100);
            prop_assert!(filling.len() <= 1);
        }
    }
}

#[test]
fn what_came_by_once_is_forgotten_when_there_is_too_much_of_it() {
    let mut cache = cache(100);
    for name in 0..3 * REMEMBERED_MOST {
        cache.want(source(&name.to_string(), 1000));
        cache.next();
    }
    let remembered = cache.times.len();
    assert!(remembered <= REMEMBERED_MOST, "{remembered}");
}
