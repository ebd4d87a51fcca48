//! Dates for chat templates: `strftime` over a UTC time, the few codes that templates use.

/// Days before each month of a common year.
const DAYS_BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A moment, in UTC.
struct Moment {
    year: u64,
    /// From zero.
    month: usize,
    day: u64,
    /// From zero.
    day_of_year: u64,
    weekday: &'static str,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn from_unix(unix_s: u64) -> Moment {
        // A year far beyond any clock; it keeps the loop below short.
        let unix_s = unix_s.min(253_402_300_799);
        let (days, in_day) = (unix_s / 86_400, unix_s % 86_400);
        let cycle = |year: u64| if year.is_multiple_of(100) { 400 } else { 4 };
        let is_leap = |year: u64| year.is_multiple_of(cycle(year));
        let (mut year, mut day_of_year) = (1970, days);
        while day_of_year >= 365 + u64::from(is_leap(year)) {
            day_of_year -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let before = |month: usize| DAYS_BEFORE[month] + u64::from(is_leap(year) && month > 1);
        let month = (0..12).rev().find(|&month| before(month) <= day_of_year).unwrap_or(0);
        Moment {
            year,
            month,
            day: day_of_year - before(month) + 1,
            day_of_year,
            weekday: WEEKDAYS[(days % 7) as usize],
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }

    /// What a code stands for; `None` for one that is not known.
    fn code(&self, code: char) -> Option<String> {
        let month = MONTHS[self.month];
        Some(match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => self.weekday.to_owned(),
            'a' => self.weekday[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year + 1),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{:02}", (self.hour + 11) % 12 + 1),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// `format` with its codes filled in for the time, seconds after 1970 in UTC; an unknown code
/// stays as it is. `%-d` and the like drop leading zeros.
pub(super) fn strftime(format: &str, unix_s: u64) -> String {
    let moment = Moment::from_unix(unix_s);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (bare, codes) = match after.strip_prefix('-') {
            Some(codes) => (true, codes),
            None => (false, after),
        };
        let code = codes.chars().next();
        match code.and_then(|code| moment.code(code)) {
            Some(text) if bare => out.push_str(match text.trim_start_matches(['0', ' ']) {
                "" => "0",
                trimmed => trimmed,
            }),
            Some(text) => out.push_str(&text),
            None => {
                out.push('%');
                rest = after;
                continue;
            }
        }
        rest = &codes[code.map_or(0, char::len_utf8)..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %b %Y %a", "29 Feb 2000 Tue"),
            (1_735_689_599, "%F %T %j", "2024-12-31 23:59:59 366"),
            (1_720_000_000, "%-d %B %y, %I:%M %p", "3 July 24, 09:46 AM"),
            (1_720_000_000, "100%% %Q %", "100% %Q %"),
        ];
        for (unix_s, format, expected) in cases {
            assert_eq!(strftime(format, unix_s), expected);
        }
        assert_eq!(strftime("%Y", u64::MAX), "9999");
    }
}
