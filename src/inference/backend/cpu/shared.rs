//! Memory that the threads of one job share: disjoint writes, and scratch for each worker.

use std::cell::UnsafeCell;

/// A slice that tasks write at disjoint places.
pub struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: access is through unsafe functions whose callers own the places that they touch.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `slice` for as long as the caller keeps it borrowed.
    pub fn new(slice: &mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Writes place `i`.
    ///
    /// # Safety
    /// The slice is alive, and no other thread touches this place.
    #[inline(always)]
    pub unsafe fn write(&self, i: usize, value: T) {
        assert!(i < self.len);
        // SAFETY: inside the slice; the caller owns the place.
        unsafe { self.start.add(i).write(value) };
    }

    /// Place `i`.
    ///
    /// # Safety
    /// The slice is alive, and nothing else touches this place while the reference lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the point of the type: tasks own disjoint places
    pub unsafe fn get(&self, i: usize) -> &mut T {
        assert!(i < self.len);
        // SAFETY: inside the slice; the caller owns the place.
        unsafe { &mut *self.start.add(i) }
    }

    /// Places `i..i + n`.
    ///
    /// # Safety
    /// The slice is alive, and nothing else touches these places while the reference lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the point of the type: tasks own disjoint places
    pub unsafe fn slice(&self, i: usize, n: usize) -> &mut [T] {
        assert!(i.checked_add(n).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice; the caller owns the places.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i), n) }
    }
}

/// A `T` for each worker of a pool.
pub struct PerWorker<T>(Box<[UnsafeCell<T>]>);

// SAFETY: each worker touches only its own `T` (the rule of `get`).
unsafe impl<T: Send> Sync for PerWorker<T> {}

impl<T: Default> PerWorker<T> {
    /// One for each of `n` workers.
    pub fn new(n: usize) -> Self {
        PerWorker((0..n).map(|_| UnsafeCell::new(T::default())).collect())
    }

    /// The one of worker `worker_idx`.
    ///
    /// # Safety
    /// Only that worker calls this, and it drops the reference before it calls again.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // the point of the type: workers own their place
    pub unsafe fn get(&self, worker_idx: usize) -> &mut T {
        // SAFETY: the caller is the only one.
        unsafe { &mut *self.0[worker_idx].get() }
    }
}
