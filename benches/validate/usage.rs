//! What a process has used, as the kernel counts it.

use std::{fs, time::Duration};

/// The CPU time of all its threads, user and system together, to a tick (10 ms).
pub fn cpu(pid: u32) -> Duration {
    let stat = read(pid, "stat");
    // The second field is the command in parentheses, which may hold anything; utime and stime are fields 14 and 15.
    let after_command = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let times = after_command.split(' ').skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Its resident memory, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = read(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("a running process has resident memory") * 1024
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .unwrap_or_else(|error| panic!("process {pid} is gone: {error}"))
}
