//! Proves the arithmetic of one ledger: reservations, periods, clocks that jump, shares, corrections.

use super::*;

const NOON: u64 = 1_735_646_400; // 2024-12-31T12:00:00Z
const MIDNIGHT: u64 = 1_735_689_600; // 2025-01-01T00:00:00Z

fn budget(period: Period, limit: u64) -> Budget {
    Budget { unit: Unit::Tokens, period, limit }
}

fn budgets(per_day: u64, per_month: u64) -> [Budget; 2] {
    [budget(Period::Day, per_day), budget(Period::Month, per_month)]
}

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, micros: 0 }
}

fn reserve(ledger: &mut Ledger, budgets: &[Budget], estimate: u64, now: u64) -> Result<u64, Spent> {
    if let Some(spent) = ledger.spent(budgets, Scope::Tenant, Reach::Alone, now) {
        return Err(spent);
    }
    let reserved = estimate.min(ledger.left(budgets, Reach::Alone, now).tokens);
    ledger.reserve(tokens(reserved));
    Ok(reserved)
}

fn settle(ledger: &mut Ledger, reserved: u64, used: u64, now: u64) {
    ledger.settle(tokens(reserved), tokens(used), now);
}

fn used(ledger: &mut Ledger, now: u64) -> (u64, u64) {
    let states = ledger.states(&budgets(1_000, 1_000), Scope::Tenant, Reach::Alone, now);
    match states.as_slice() {
        [day, month] => (day.used, month.used),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reservation_takes_no_more_than_is_left() {
    let mut ledger = Ledger::default();
    let both = budgets(800, 10_000);
    assert_eq!(reserve(&mut ledger, &both, 500, NOON), Ok(500));
    assert_eq!(reserve(&mut ledger, &both, 500, NOON), Ok(300));
    let spent = reserve(&mut ledger, &both, 500, NOON).expect_err("all is reserved");
    assert_eq!((spent.limit.name, spent.limit.remaining, spent.wait), ("tokens_per_day", 0, RESERVED_WAIT));
    settle(&mut ledger, 500, 20, NOON);
    assert_eq!(reserve(&mut ledger, &both, 500, NOON), Ok(480));
}

#[test]
fn a_spent_budget_names_the_period_that_ends_last() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 900, NOON - 86_400);
    let spent = reserve(&mut ledger, &budgets(900, 900), 1, NOON - 86_400).expect_err("both are spent");
    let left = Duration::from_secs(MIDNIGHT - NOON);
    assert_eq!((spent.limit.name, spent.wait), ("tokens_per_month", left + Duration::from_secs(86_400)));
    let spent = reserve(&mut ledger, &budgets(900, 1_000), 1, NOON - 86_400).expect_err("the day is spent");
    assert_eq!((spent.limit.name, spent.wait), ("tokens_per_day", left));
}

#[test]
fn midnight_begins_a_day_and_a_month_and_keeps_reservations() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 100, NOON - 86_400);
    settle(&mut ledger, 0, 10, NOON);
    assert_eq!(used(&mut ledger, NOON), (10, 110));
    assert_eq!(reserve(&mut ledger, &budgets(1_000, 1_000), 7, NOON), Ok(7));
    assert_eq!(used(&mut ledger, MIDNIGHT), (7, 7));
    settle(&mut ledger, 7, 9, MIDNIGHT);
    assert_eq!(used(&mut ledger, MIDNIGHT), (9, 9));
}

#[test]
fn a_clock_that_jumps_back_gives_no_budget_back() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 5, MIDNIGHT);
    for back in [MIDNIGHT - 1, MIDNIGHT - 86_400, MIDNIGHT - 90 * 86_400, 0] {
        assert_eq!(used(&mut ledger, back), (5, 5), "{back}");
    }
}

#[test]
fn a_step_back_across_midnight_does_not_begin_the_day_twice() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 5, MIDNIGHT + 1);
    settle(&mut ledger, 0, 6, MIDNIGHT - 2);
    assert_eq!(used(&mut ledger, MIDNIGHT), (11, 11));
}

#[test]
fn a_wrong_future_clock_does_not_freeze_the_budget_once_corrected() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 5, NOON + 365 * 86_400);
    settle(&mut ledger, 0, 6, NOON);
    assert_eq!(used(&mut ledger, NOON), (11, 11));
    assert_eq!(used(&mut ledger, MIDNIGHT), (0, 0));
}

#[test]
fn unlimited_reserves_the_estimate_and_never_refuses() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, u64::MAX, NOON);
    assert_eq!(reserve(&mut ledger, &[], 500, NOON), Ok(500));
}

#[test]
fn a_rolling_day_gives_back_hour_by_hour_and_never_early() {
    let mut ledger = Ledger::default();
    ledger.roll();
    let day = [budget(Period::Last24Hours, 100)];
    settle(&mut ledger, 0, 60, NOON);
    settle(&mut ledger, 0, 40, NOON + 3_600);
    for (hours, left) in [(1, 0), (23, 0), (24, 0), (25, 60), (26, 100)] {
        assert_eq!(ledger.left(&day, Reach::Alone, NOON + hours * 3_600).tokens, left, "after {hours} hours");
    }
}

#[test]
fn a_share_of_what_is_left_is_all_that_is_granted_while_others_are_out_of_sight() {
    let mut ledger = Ledger::default();
    let day = [budget(Period::Day, 1_000)];
    settle(&mut ledger, 0, 100, NOON);
    ledger.know(Period::Day, Unit::Tokens, 300);
    assert_eq!(ledger.left(&day, Reach::Among, NOON).tokens, 600);
    ledger.lose(1, NOON);
    let cut = Reach::Cut { parts: 3, loss: 1 };
    assert_eq!(ledger.left(&day, cut, NOON).tokens, 200);
    settle(&mut ledger, 0, 150, NOON);
    ledger.lose(1, NOON);
    assert_eq!(ledger.left(&day, cut, NOON).tokens, 50);
    settle(&mut ledger, 0, 70, NOON);
    assert_eq!(ledger.left(&day, cut, NOON).tokens, 0);
}

#[test]
fn corrections_last_until_the_period_ends() {
    let mut ledger = Ledger::default();
    settle(&mut ledger, 0, 900, NOON);
    ledger.correct(Unit::Tokens, Correction::By(-500), NOON);
    assert_eq!(used(&mut ledger, NOON), (400, 400));
    ledger.correct(Unit::Tokens, Correction::To(0), NOON);
    assert_eq!(used(&mut ledger, NOON), (0, 0));
    settle(&mut ledger, 0, 7, NOON);
    assert_eq!(used(&mut ledger, NOON), (7, 7));
    settle(&mut ledger, 0, 9, MIDNIGHT);
    assert_eq!(used(&mut ledger, MIDNIGHT), (9, 9));
}
