// The function of a rehearsal (parked.cjs): loading and calling it does what loading and calling any other does.

'use strict';

exports.handler = async (event) => event;
