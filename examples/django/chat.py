"""What chatrelay needs of a Django site. Copy this file and ``end_chat.py`` into an app, and route its views.

from . import chat

urlpatterns = [
    path("session", chat.session),
    path("whoami", chat.whoami),
    path("login/", chat.Login.as_view()),
    path("logout/", chat.Logout.as_view()),
]
"""

from __future__ import annotations

import hmac
from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from .end_chat import end_chat

SECRET_FILE = "/etc/chatrelay/auth-secret"
"""The file of ``--auth-secret-file``. The site must be able to read it."""

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


def _answer(user: Any) -> JsonResponse:
    return JsonResponse({"loggedin": True, "uID": user.pk} if user.is_authenticated else {"loggedin": False})


@csrf_exempt  # the relay has no CSRF token of the site
@require_POST
def session(request: HttpRequest) -> HttpResponse:
    """Say whose session it is: the session page. Only the relay may ask."""
    secret = f"Bearer {Path(SECRET_FILE).read_text('ascii').strip()}"
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), secret.encode()):
        return HttpResponse("not the relay: the secret is missing or wrong", status=400)
    if "SESSID" not in request.POST:
        return HttpResponse("there is no SESSID in a form", status=400)
    request.session = SessionStore(request.POST["SESSID"])
    return _answer(get_user(request))


@require_GET
def whoami(request: HttpRequest) -> HttpResponse:
    """Tell the pages with the chat who is logged in with this browser."""
    answer = _answer(request.user)
    # Django would delete an unknown session's cookie. But by now the browser may have the cookie of a new login.
    request.COOKIES.pop(settings.SESSION_COOKIE_NAME, None)
    return answer


class Login(LoginView):
    """End the chat of the previous user, whose pages are still open in this browser."""

    def form_valid(self, form: Any) -> HttpResponse:
        """Log in."""
        before = self.request.user.pk
        response = super().form_valid(form)
        if before not in (None, form.get_user().pk):
            end_chat(before)
        return response


class Logout(LogoutView):
    """End the chat of the user, once the session has ended."""

    def post(self, request: HttpRequest, *args: Any, **keywords: Any) -> HttpResponse:
        """Log out."""
        uid = request.user.pk  # afterwards it is None
        response = super().post(request, *args, **keywords)
        if uid is not None:
            end_chat(uid)
        return response
