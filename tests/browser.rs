//! The page at `/`, used as a person uses it: the real binary, and a headless Chromium where there
//! is one.

use serde_json::json;

use crate::serve::Process;
use crate::support::http::{post, send, until};
use crate::support::skip::skip;
use crate::support::webdriver::Browser;

const ENTER: &str = "\u{e007}";

/// What one person sees.
struct Page {
    browser: Browser,
    service: Process,
    _home: tempfile::TempDir,
}

impl Page {
    /// The page of a service with these options; `None` where there is no browser.
    fn open(options: &[&str]) -> Option<Page> {
        let browser = match Browser::start() {
            Ok(browser) => browser,
            Err(reason) => {
                skip("browser", &reason);
                return None;
            }
        };
        let home = tempfile::tempdir().unwrap();
        let service = Process::start(home.path(), options);
        browser.open(&format!("http://{}/", service.address));
        Some(Page { browser, service, _home: home })
    }

    /// Text of an element; empty if there is none.
    fn text(&self, css: &str) -> String {
        let script = format!("return [...document.querySelectorAll('{css}')].at(-1)?.textContent");
        self.browser.script(&script).as_str().unwrap_or_default().to_owned()
    }

    /// The last answer of the model.
    fn answer(&self) -> String {
        self.text("#log .turn:not(.mine) pre")
    }

    fn note(&self) -> String {
        self.text("#note")
    }

    /// Whether Stop can be pressed, that is, while the model is asked.
    fn is_busy(&self) -> bool {
        self.browser.script("return !document.getElementById('stop').disabled") == true
    }

    /// Fills in a field of the options, which are open.
    fn option(&self, css: &str, value: &str) {
        self.browser.clear(css);
        self.browser.keys(css, value);
    }

    /// Types a text, sends it with the Enter key, and waits for the end.
    fn ask(&self, words: &str) {
        self.browser.keys("#text", &format!("{words}{ENTER}"));
        until("the page is done", || !self.is_busy() && self.note() != "...");
    }
}

#[test]
fn the_page_streams_stops_and_goes_on() {
    let Some(page) = Page::open(&["-c", "16384", "-np", "1", "--alias", "coder"]) else { return };
    until("the model has a name", || page.text("#model") == "coder");
    page.browser.click("summary");

    // Greedy, the default model never ends after this prompt.
    page.browser.click("#mode option[value=complete]");
    page.option("#temp", "0");
    page.option("#n", "16000");
    page.browser.keys("#text", "x");
    page.browser.click("#go");
    let seen = |more_than: usize| {
        until("text appears while the model writes", || {
            assert!(page.is_busy(), "it ended: {}", page.note());
            page.answer().len() > more_than
        });
        page.answer().len()
    };
    seen(seen(0));
    assert_eq!(page.text("#log .mine pre"), "x");
    page.browser.click("#stop");
    until("the page has stopped", || !page.is_busy());
    assert_eq!(page.note(), "stopped");
    let stopped = page.answer();
    until("the service has stopped", || {
        let slots = send(page.service.address, "GET", "/slots", &[], "").json();
        slots[0]["is_processing"] == false
    });
    assert_eq!(page.answer(), stopped);

    // The same question again is answered as everybody is.
    page.browser.click("#clear");
    assert_eq!(page.text("#log"), "");
    page.browser.click("#mode option[value=chat]");
    page.option("#n", "24");
    page.ask("Add two numbers.");
    assert!(page.note().contains("tokens/s"), "{}", page.note());
    let body = json!({"messages": [{"role": "user", "content": "Add two numbers."}],
        "temperature": 0, "max_tokens": 24});
    let told = post(page.service.address, "/v1/chat/completions", &body).json();
    assert_eq!(page.answer(), told["choices"][0]["message"]["content"]);
    assert_eq!(page.browser.errors(), [""; 0]);
}

#[test]
fn the_page_says_that_a_key_is_needed_and_takes_one() {
    let Some(page) = Page::open(&["--api-key", "a-secret"]) else { return };
    page.ask("Add two numbers.");
    assert!(page.note().to_lowercase().contains("key"), "{}", page.note());
    assert_eq!(page.text("#note.bad"), page.note());
    assert_eq!(page.answer(), "");

    page.browser.click("summary");
    page.option("#n", "8");
    page.browser.keys("#key", "a-secret");
    page.ask("Add two numbers.");
    assert!(page.note().contains("tokens/s"), "{}", page.note());
    assert_ne!(page.answer(), "");
}
