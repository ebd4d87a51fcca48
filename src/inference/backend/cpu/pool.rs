//! The worker threads: one job at a time, split into tasks that the threads take in turn.
//!
//! A token passes a few hundred jobs, so workers spin briefly for the next one before they sleep,
//! and a job is handed over without allocation. The caller works as well and waits only for tasks
//! that others have begun: where the system gives a worker no core, the rest goes on without it.
//! Which thread runs a task never shows in a result: tasks write disjoint places and read only what
//! was finished before the job.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// Polls before a waiting thread gives its time slice away, and before a worker sleeps.
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
    /// `n_tasks << 32 | next`: the job's tasks and the first that nobody has taken.
    tasks: AtomicU64,
    /// Points at the caller's `&Task` while a job runs.
    job: AtomicPtr<()>,
    n_done: AtomicUsize,
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
            tasks: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            n_done: AtomicUsize::new(0),
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
        let n = u32::try_from(n_tasks).expect("a job has fewer tasks than a batch has values");
        let job: *const &Task<'_> = &task;
        shared.job.store(job as *mut (), Ordering::Relaxed);
        shared.n_done.store(0, Ordering::Relaxed);
        // Release: whoever takes a task sees the job.
        shared.tasks.store(u64::from(n) << 32, Ordering::Release);
        self.handles.iter().for_each(Thread::unpark);
        while shared.take_task(0) {}
        let mut spins = 0u32;
        while shared.n_done.load(Ordering::Acquire) != n_tasks {
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
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.take_task(worker_idx) {
                spins = 0;
                continue;
            }
            spins += 1;
            match spins {
                ..SPINS_BEFORE_YIELD => std::hint::spin_loop(),
                SPINS_BEFORE_YIELD..SPINS_BEFORE_SLEEP => std::thread::yield_now(),
                // A wake-up that came before is remembered by park, so none is lost.
                _ => std::thread::park(),
            }
        }
    }

    /// Takes a task and runs it; false if none is left. A panic is kept for the caller of `run`.
    fn take_task(&self, worker_idx: usize) -> bool {
        let mut tasks = self.tasks.load(Ordering::Relaxed);
        loop {
            if tasks as u32 >= (tasks >> 32) as u32 {
                return false;
            }
            let take = self.tasks.compare_exchange_weak(
                tasks,
                tasks + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match take {
                Ok(_) => break,
                Err(now) => tasks = now,
            }
        }
        let job = self.job.load(Ordering::Relaxed) as *const &Task<'_>;
        // SAFETY: `run` stored a pointer to a reference on its stack before it offered the tasks,
        // and does not return, nor store another, before the task taken above is done.
        let task = unsafe { *job };
        let task_idx = tasks as u32 as usize;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(task_idx, worker_idx))) {
            *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
        self.n_done.fetch_add(1, Ordering::Release);
        true
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
