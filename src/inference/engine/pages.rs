//! Pages of the KV cache: who holds which, counted.

use crate::inference::backend::PageIdx;

/// Every page of the cache with the number of its holders: sequences and the prefix cache.
#[derive(Debug)]
pub struct PagePool {
    n_holder: Vec<u32>,
    free: Vec<PageIdx>,
}

impl PagePool {
    /// A pool of `n_page` free pages.
    pub fn new(n_page: usize) -> PagePool {
        PagePool { n_holder: vec![0; n_page], free: (0..n_page as PageIdx).rev().collect() }
    }

    /// A free page, held once.
    pub fn alloc(&mut self) -> Option<PageIdx> {
        let page = self.free.pop()?;
        self.n_holder[page as usize] = 1;
        Some(page)
    }

    /// Holds a page once more.
    pub fn retain(&mut self, page: PageIdx) {
        let n = &mut self.n_holder[page as usize];
        assert!(*n > 0, "a free page cannot be shared");
        *n += 1;
    }

    /// Lets go of a page; without holders it is free.
    pub fn release(&mut self, page: PageIdx) {
        let n = &mut self.n_holder[page as usize];
        assert!(*n > 0, "a free page cannot be let go");
        *n -= 1;
        if *n == 0 {
            self.free.push(page);
        }
    }

    /// Holders of a page.
    pub fn n_holder(&self, page: PageIdx) -> u32 {
        self.n_holder[page as usize]
    }

    /// Free pages.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn n_page(&self) -> usize {
        self.n_holder.len()
    }
}
