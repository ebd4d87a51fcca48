//! The worker threads: one job at a time, split into tasks that the threads take in turn.
//!
//! A token passes a few hundred barriers, so workers spin briefly for the next job before they
//! sleep, and a job is handed over without allocation. Which thread runs a task never shows in a
//! result: tasks write disjoint places and read only what was finished before the job.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// Polls before a waiting worker gives its time slice away, and before it sleeps.
const SPINS_BEFORE_YIELD: u32 = 2_000;
const SPINS_BEFORE_SLEEP: u32 = 2_200;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that run jobs together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

struct Shared {
    /// Counts the jobs; a change is the signal that one is there.
    epoch: AtomicU64,
    /// Points at the caller's `&Task` while a job runs.
    job: AtomicPtr<()>,
    n_tasks: AtomicUsize,
    next: AtomicUsize,
    /// Workers that have not finished the job yet.
    n_busy: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Pool {
    /// Starts `n_threads - 1` workers; the caller of [`Pool::run`] is the last one.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(n_threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            n_tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            n_busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, threads: Vec::new(), handles: Vec::new() };
        for worker_idx in 1..n_threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("cpu-{worker_idx}"))
                .spawn(move || shared.work(worker_idx))?;
            pool.handles.push(thread.thread().clone());
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads that run a job, the caller included.
    pub fn n_threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(task_idx, worker_idx)` once for each index below `n_tasks` and returns when all
    /// are done.
    ///
    /// # Panics
    /// If a task panicked, on whichever thread.
    pub fn run(&mut self, n_tasks: usize, task: &Task<'_>) {
        if n_tasks <= 1 || self.threads.is_empty() {
            (0..n_tasks).for_each(|i| task(i, 0));
            return;
        }
        let shared = &*self.shared;
        let job: *const &Task<'_> = &task;
        shared.job.store(job as *mut (), Ordering::Relaxed);
        shared.n_tasks.store(n_tasks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.n_busy.store(self.threads.len(), Ordering::Relaxed);
        // Release: whoever sees the new epoch sees the job.
        shared.epoch.fetch_add(1, Ordering::Release);
        self.handles.iter().for_each(Thread::unpark);
        shared.take_tasks(task, 0);
        let mut spins = 0u32;
        while shared.n_busy.load(Ordering::Acquire) != 0 {
            spins = spins.saturating_add(1);
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker_idx: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                spins += 1;
                match spins {
                    ..SPINS_BEFORE_YIELD => std::hint::spin_loop(),
                    SPINS_BEFORE_YIELD..SPINS_BEFORE_SLEEP => std::thread::yield_now(),
                    // A wake-up that came before is remembered by park, so none is lost.
                    _ => std::thread::park(),
                }
            }
            seen += 1;
            let job = self.job.load(Ordering::Relaxed) as *const &Task<'_>;
            // SAFETY: `run` stored a pointer to a reference on its stack before it raised the
            // epoch, and does not return before `n_busy` is zero.
            let task = unsafe { *job };
            self.take_tasks(task, worker_idx);
            self.n_busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Runs tasks until none is left; a panic is kept for the caller of `run`.
    fn take_tasks(&self, task: &Task<'_>, worker_idx: usize) {
        let n_tasks = self.n_tasks.load(Ordering::Relaxed);
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task_idx = self.next.fetch_add(1, Ordering::Relaxed);
                if task_idx >= n_tasks {
                    break;
                }
                task(task_idx, worker_idx);
            }
        }));
        if let Err(panic) = done {
            *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for n_threads in [1, 2, 5] {
            let mut pool = Pool::new(n_threads).expect("threads start");
            for n_tasks in [0, 1, 2, 97] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|i, worker| {
                    assert!(worker < n_threads);
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).expect("threads start");
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|i, _| assert!(i != 7, "task seven"));
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i, _| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
