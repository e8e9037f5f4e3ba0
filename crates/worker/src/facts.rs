//! The host as this process sees it: its processor, its memory, the memory of the process. Changes nothing but the
//! kernel's note of the process's peak.

use std::fs;

use calotype_protocol::MemoryReport;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The processor's name.
pub(crate) fn processor() -> String {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let brand = system
        .ok()
        .and_then(|system| system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()));
    let brand = brand.unwrap_or_default();
    if brand.is_empty() {
        format!("{} CPU", std::env::consts::ARCH)
    } else {
        brand
    }
}

/// Total and free bytes of the host.
pub(crate) fn host_bytes() -> (u64, u64) {
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    // Where the host does not tell, nothing is claimed.
    system.map_or((0, 0), |system| {
        (system.total_memory(), system.available_memory())
    })
}

/// Resident bytes of this process now.
pub(crate) fn used_bytes() -> u64 {
    status_bytes("VmRSS:")
}

/// Most resident bytes since the start or [`reset_peak`].
pub(crate) fn peak_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// Forgets the peak, where the kernel lets us.
pub(crate) fn reset_peak() {
    // Where it is refused the peak stays an upper bound, which is still true.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// All figures at once.
pub(crate) fn memory() -> MemoryReport {
    let (total_bytes, free_bytes) = host_bytes();
    MemoryReport {
        total_bytes,
        free_bytes,
        used_bytes: used_bytes(),
        peak_bytes: peak_bytes(),
        cached_bytes: 0,
    }
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap_or_default();
    line.split_whitespace()
        .next()
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
